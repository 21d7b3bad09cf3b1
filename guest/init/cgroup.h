// The guest's cgroups (v2): one for what serves, one for the workload and its execs.
#pragma once
#include <stdbool.h>
#include <stdint.h>

struct cgroup_stats {
	uint64_t memory, memory_peak, cpu_micros, processes, oom_kills;
};

// Mounts the tree and makes both.
bool cgroup_open(void);
// A descriptor of the workload's, for clone3.
int cgroup_workload(void);
void cgroup_kill(void);
uint64_t cgroup_oom_kills(void);
void cgroup_stats(struct cgroup_stats *stats);
