// Running crun: its command line, what it inherits, and what it leaves behind.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct process;

// Copies the runtime to sealed memory. It protects itself from what it runs by doing that, and starting anew from
// there, at each start (twice, on this kernel), unless it is there already.
bool runtime_open(void);
// Where a file of a process is, in 64 bytes. "config" is where the runtime looks for it.
void runtime_path(const char *what, unsigned id, char path[64]);
// Runs it in the workload's cgroup, with the process's streams attached.
bool runtime_launch(struct process *process, bool exec, bool with_stdin, char *why, size_t why_capacity);
// The terminal, when the runtime has sent it; -1 before.
int runtime_take_terminal(struct process *process);
// The pid of what was executed, or 0, and what the runtime complained of.
pid_t runtime_outcome(const struct process *process, char *told, size_t told_capacity);
