// The workload and its execs as containers: what START and EXEC ask for is prepared, the runtime is run, and told apart
// whether the program was executed or why it was not.
#pragma once
#include <stdbool.h>
#include <stddef.h>

struct process;

// `root`: the container's root folder, or -1 with `why` there is none.
void container_open(int root, const char *why);
void container_start(const char *request, size_t length);
// False when there is no slot for it.
bool container_exec(unsigned short id, const char *request, size_t length);
// The runtime brings a terminal.
void container_console(struct process *process);
// The program has been executed, or never will be.
void container_executed(struct process *process);
// Children have ended.
void container_reap(void);
