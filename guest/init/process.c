// The table of processes and their streams; see process.h.
#include "process.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "cgroup.h"

// How long an exec's output may stay open after its end, in the hands of what it left behind.
enum { LINGER_MS = 500 };

struct process processes[MAX_PROCESSES + 1];
static int epoll_fd;

void processes_open(int epoll) {
	epoll_fd = epoll;
}

uint64_t now_ms(void) {
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

bool watch(int fd, uint32_t events, enum source source, int index) {
	struct epoll_event event = { .events = events, .data.u64 = (uint64_t)source << 32 | (uint32_t)index };
	return epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0;
}

static void unwatch(int fd, bool *watched) {
	if (*watched) epoll_ctl(epoll_fd, EPOLL_CTL_DEL, fd, NULL);
	*watched = false;
}

static void close_fd(int *fd) {
	if (*fd >= 0) close(*fd);
	*fd = -1;
}

struct process *process_find(uint16_t id) {
	for (int i = 0; i <= MAX_PROCESSES; i++) {
		if (processes[i].used && !processes[i].forgotten && processes[i].id == id) return &processes[i];
	}
	return NULL;
}

struct process *process_make(uint16_t id) {
	int i = id == 0 ? 0 : 1;
	while (i <= MAX_PROCESSES && processes[i].used) i++;
	if (i > MAX_PROCESSES || (id == 0 && i > 0)) return NULL;
	struct process *process = &processes[i];
	memset(process, 0, sizeof *process);
	process->id = id;
	process->executed_fd = process->console_fd = process->input.fd = process->outputs[0].fd = process->outputs[1].fd = -1;
	process->used = true;
	if (!ring_open(&process->outputs[0].ring, OUTPUT_CAPACITY) || !ring_open(&process->outputs[1].ring, OUTPUT_CAPACITY) ||
	    !ring_open(&process->input.ring, INPUT_CAPACITY)) {
		process_free(process);
		return NULL;
	}
	process->outputs[0].limit = process->outputs[1].limit = OUTPUT_CAPACITY;
	process->state = STARTING;
	return process;
}

static void close_streams(struct process *process) {
	for (int which = 0; which < 2; which++) {
		struct output *output = &process->outputs[which];
		unwatch(output->fd, &output->watched);
		close_fd(&output->fd);
	}
	unwatch(process->input.fd, &process->input.watched);
	close_fd(&process->input.fd);
	close_fd(&process->executed_fd);
	close_fd(&process->console_fd);
}

void process_free(struct process *process) {
	close_streams(process);
	ring_close(&process->outputs[0].ring);
	ring_close(&process->outputs[1].ring);
	ring_close(&process->input.ring);
	process->used = false;
	process->state = NONE;
}

void process_fail(struct process *process, uint8_t code, const char *text) {
	close_streams(process);
	if (process->forgotten) return process_free(process);
	process->state = ENDED;
	process->failed = process->outcome_due = true;
	process->code = code;
	snprintf(process->text, sizeof process->text, "%s", text);
}

// Epoll looks at an output only while there is room for it: a closed pipe would wake it again and again.
static void rewatch_output(struct process *process, int which) {
	struct output *output = &process->outputs[which];
	bool wanted = output->fd >= 0 && ring_room(&output->ring) > 0;
	if (wanted && !output->watched) {
		output->watched = watch(output->fd, EPOLLIN, which == 0 ? SOURCE_STDOUT : SOURCE_STDERR, process_index(process));
	} else if (!wanted) {
		unwatch(output->fd, &output->watched);
	}
}

static void end_output(struct process *process, int which) {
	struct output *output = &process->outputs[which];
	unwatch(output->fd, &output->watched);
	close_fd(&output->fd);
	output->ended = true;
}

void process_attach(struct process *process, int input, int output, int error) {
	process->input.fd = input;
	process->outputs[0].fd = output;
	process->outputs[1].fd = error;
	if (error < 0) process->outputs[1].ended = true;
	rewatch_output(process, 0);
	rewatch_output(process, 1);
	process->input.ack_due = true;
	input_write(process);
}

void process_started(struct process *process) {
	process->state = RUNNING;
	process->started_due = true;
	input_write(process);
}

void process_found(struct process *process, pid_t pid) {
	process->pid = pid;
	if (process->forgotten) process->wanted_signal = SIGKILL;
	if (process->wanted_signal) process_signal(process, process->wanted_signal);
}

void process_exited(struct process *process, int status, uint64_t oom_kills) {
	process->exited = true;
	process->status = status;
	process->exited_at_ms = now_ms();
	process->oom = oom_kills > process->oom_kills_before && (process->id == 0 || (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL));
	if (process->id == 0) cgroup_kill();
}

void process_signal(struct process *process, uint32_t number) {
	if (number == 0 || number > 64 || process->exited) return;
	if (process->pid > 0) kill(process->pid, (int)number);
	else if (process->wanted_signal != SIGKILL) process->wanted_signal = number;
}

void process_resize(struct process *process, uint16_t rows, uint16_t columns) {
	process->rows = rows;
	process->columns = columns;
	struct winsize size = { .ws_row = rows, .ws_col = columns };
	if (process->tty && process->outputs[0].fd >= 0) ioctl(process->outputs[0].fd, TIOCSWINSZ, &size);
}

void process_forget(struct process *process) {
	process->forgotten = true;
	if (process->state == STARTING || (process->state == RUNNING && !process->exited)) process_signal(process, SIGKILL);
	else process_free(process);
}

void output_read(struct process *process, int which) {
	struct output *output = &process->outputs[which];
	struct iovec space[2];
	int used = ring_space(&output->ring, space);
	if (output->fd < 0 || used == 0) return rewatch_output(process, which);
	ssize_t count = readv(output->fd, space, used);
	output->idle = count < 0 && (errno == EAGAIN || errno == EINTR);
	if (count <= 0 && !output->idle) return end_output(process, which); // the end of a pipe, or EIO of a terminal
	if (count > 0) {
		ring_commit(&output->ring, (size_t)count);
		// The runtime writes nothing here: if the program speaks, it runs, whether or not the runtime has ended.
		if (process->state == STARTING && which == 0) process_started(process);
	}
	rewatch_output(process, which);
}

void output_acknowledge(struct process *process, int which, uint64_t offset, uint64_t limit) {
	struct output *output = &process->outputs[which];
	ring_forget(&output->ring, offset);
	if (output->sent < output->ring.base) output->sent = output->ring.base;
	if (limit > output->limit) output->limit = limit;
	rewatch_output(process, which);
}

static void end_input(struct process *process) {
	struct input *input = &process->input;
	unwatch(input->fd, &input->watched);
	close_fd(&input->fd);
	ring_forget(&input->ring, input->ring.end);
	input->ack_due = true;
}

// A terminal has no end: its line discipline makes one of this character, at the beginning of a line. Behind half a
// line the first one only pushes that line through.
static void type_end(struct input *input) {
	struct termios settings;
	if (tcgetattr(input->fd, &settings) < 0) return;
	uint8_t end[2] = { settings.c_cc[VEOF], settings.c_cc[VEOF] };
	size_t count = input->ring.base > 0 && input->last != '\n' ? 2 : 1;
	if (write(input->fd, end, count) < 0) return; // a full terminal whose reader is gone: nobody to tell
}

void input_write(struct process *process) {
	struct input *input = &process->input;
	struct iovec content[2];
	if (process->state == STARTING && input->fd < 0) return; // kept until the stream is there
	while (input->fd >= 0 && ring_held(&input->ring) > 0) {
		int used = ring_content(&input->ring, input->ring.base, content);
		ssize_t count = writev(input->fd, content, used);
		if (count < 0 && errno == EINTR) continue;
		if (count < 0 && errno == EAGAIN) break;
		if (count <= 0) return end_input(process); // nobody reads any more
		ring_copy(&input->ring, input->ring.base + (uint64_t)count - 1, &input->last, 1);
		ring_forget(&input->ring, input->ring.base + (uint64_t)count);
		input->ack_due = true;
	}
	if (input->fd < 0) return end_input(process);
	if (ring_held(&input->ring) > 0) {
		if (!input->watched) input->watched = watch(input->fd, EPOLLOUT, SOURCE_STDIN, process_index(process));
		return;
	}
	unwatch(input->fd, &input->watched);
	if (input->ended) {
		if (process->tty) type_end(input);
		end_input(process);
	}
}

void input_receive(struct process *process, uint64_t offset, const uint8_t *bytes, uint32_t count) {
	struct ring *ring = &process->input.ring;
	if (process->input.ended) return; // a new host does not know that the one before it said so
	if (offset > ring->end) return; // a gap: what is missing was lost, and comes again after the next resume
	uint64_t known = ring->end - offset;
	if (known >= count) return;
	ring_append(ring, bytes + known, count - (size_t)known);
	input_write(process);
}

void input_end(struct process *process, uint64_t offset) {
	if (offset > process->input.ring.end) return; // a gap, as above
	process->input.ended = true;
	input_write(process);
}

// Milliseconds that an output may still stay open, 0 when its time is over, -1 when there is nothing to wait for.
static int linger_ms(const struct process *process, const struct output *output) {
	if (output->ended || ring_room(&output->ring) == 0 || !output->idle) return -1;
	uint64_t passed = now_ms() - process->exited_at_ms;
	return passed >= LINGER_MS ? 0 : (int)(LINGER_MS - passed);
}

int processes_settle(void) {
	int wait_ms = -1;
	for (int i = 0; i <= MAX_PROCESSES; i++) {
		struct process *process = &processes[i];
		if (!process->used || !process->exited || process->state != RUNNING) continue;
		if (process->forgotten) {
			process_free(process);
			continue;
		}
		for (int which = 0; which < 2; which++) {
			struct output *output = &process->outputs[which];
			if (!output->ended && ring_room(&output->ring) > 0) output_read(process, which);
			int left_ms = linger_ms(process, output);
			if (left_ms == 0) end_output(process, which);
			else if (left_ms > 0 && (wait_ms < 0 || left_ms < wait_ms)) wait_ms = left_ms;
		}
		if (!process->outputs[0].ended || !process->outputs[1].ended) continue;
		end_input(process);
		process->state = ENDED;
		process->outcome_due = true;
	}
	return wait_ms;
}
