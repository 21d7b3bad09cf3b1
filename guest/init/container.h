// The workload and its execs as containers: what START and EXEC ask for is prepared, the runtime is run, and told apart
// whether the program was executed or why it was not.
#pragma once
#include <stdbool.h>

#include "json.h"

struct process;

// `root`: the container's root folder, or -1 with `why` there is none.
void container_open(int root, const char *why);
// What START and EXEC ask for. A request without text was too long: its process fails. False when there is no slot.
bool container_start(struct json request);
bool container_exec(unsigned short id, struct json request);
// The runtime brings a terminal.
void container_console(struct process *process);
// The program has been executed, or never will be.
void container_executed(struct process *process);
// Children have ended.
void container_reap(void);
