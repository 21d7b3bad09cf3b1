// The processes that the host knows: the workload (0) and its execs. Their streams, what is owed to the host about
// them, and their end. A fixed table; rings are taken when a process starts and given back when it is forgotten.
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "ring.h"

enum { MAX_PROCESSES = 64, OUTPUT_CAPACITY = 262144, INPUT_CAPACITY = 65536, MAX_TEXT = 1024 };

enum process_state { NONE, STARTING, RUNNING, ENDED };

// What can wake the event loop, for epoll's data: a kind, and the index of a process.
enum source { SOURCE_PORT, SOURCE_CHILDREN, SOURCE_STDOUT, SOURCE_STDERR, SOURCE_STDIN, SOURCE_EXECUTED, SOURCE_CONSOLE };

struct output {
	struct ring ring;
	int fd;          // read end of the pipe, or the terminal; -1 when it has ended
	bool watched;    // epoll looks at fd: only while there is room
	bool idle;       // the last read found nothing
	bool ended, end_sent;
	uint64_t sent, limit;
};

struct input {
	struct ring ring;
	int fd;          // write end of the pipe, or the terminal; -1: what comes is thrown away
	bool watched;
	bool ended;      // the host said that it ends here
	uint8_t last;    // byte written
	bool ack_due;
};

struct process {
	bool used;
	bool forgotten;  // the host does not know it any more: kept only until it is reaped
	uint16_t id;
	enum process_state state;
	bool tty;
	uint16_t rows, columns;
	pid_t pid;       // 0 until it is known
	int executed_fd; // comes to its end when the program has been executed, or could not be
	int console_fd;  // where the runtime will bring the terminal
	bool console_listens;
	uint32_t wanted_signal; // came before there was a process
	bool exited;
	int status;      // of waitpid
	bool oom;
	uint64_t oom_kills_before;
	uint64_t exited_at_ms;
	bool failed;
	uint8_t code;
	char text[MAX_TEXT];
	bool started_due, outcome_due;
	struct output outputs[2]; // stdout, stderr
	struct input input;
};

extern struct process processes[MAX_PROCESSES + 1];

static inline int process_index(const struct process *process) { return (int)(process - processes); }

void processes_open(int epoll);
uint64_t now_ms(void);
// Watches `fd` for epoll `events` under a source and the process it belongs to.
bool watch(int fd, uint32_t events, enum source source, int index);

// NULL when the host knows no such process.
struct process *process_find(uint16_t id);
// A slot with rings, or NULL when there is none left.
struct process *process_make(uint16_t id);
// Gives everything back.
void process_free(struct process *process);
void process_fail(struct process *process, uint8_t code, const char *text);
// Hands over the descriptors of its streams (-1 for none) and watches them.
void process_attach(struct process *process, int input, int output, int error);
// It has been executed; its pid may not be known yet.
void process_started(struct process *process);
void process_found(struct process *process, pid_t pid);
void process_exited(struct process *process, int status, uint64_t oom_kills);
void process_signal(struct process *process, uint32_t number);
void process_resize(struct process *process, uint16_t rows, uint16_t columns);
// The host wants nothing more of it: it is killed if it still runs.
void process_forget(struct process *process);

void output_read(struct process *process, int which);
void output_acknowledge(struct process *process, int which, uint64_t offset, uint64_t limit);
void input_receive(struct process *process, uint64_t offset, const uint8_t *bytes, uint32_t count);
void input_end(struct process *process, uint64_t offset);
void input_write(struct process *process);
// What is in the ring is safe: for the host it is as good as read by the program, and a new one goes on behind it.
static inline uint64_t input_received(const struct input *input) { return input->ring.end; }
static inline uint64_t input_limit(const struct input *input) { return input->ring.base + INPUT_CAPACITY; }

// Moves those that have exited, and whose output is complete, to their end. Milliseconds until there is something to
// do again, or -1.
int processes_settle(void);
