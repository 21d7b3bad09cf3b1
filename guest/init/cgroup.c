// The guest's cgroups; see cgroup.h.
#define _GNU_SOURCE
#include "cgroup.h"

#include <fcntl.h>
#include <stdlib.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#define ROOT "/sys/fs/cgroup"

static int workload = -1;

static bool put(int folder, const char *name, const char *value) {
	int file = openat(folder, name, O_WRONLY | O_CLOEXEC);
	if (file < 0) return false;
	bool done = write(file, value, strlen(value)) > 0;
	close(file);
	return done;
}

static void enable_controllers(void) {
	char names[256], line[64];
	int file = open(ROOT "/cgroup.controllers", O_RDONLY | O_CLOEXEC);
	ssize_t length = file < 0 ? -1 : read(file, names, sizeof names - 1);
	if (file >= 0) close(file);
	if (length <= 0) return;
	names[length] = 0;
	char *rest = NULL;
	for (char *name = strtok_r(names, " \n", &rest); name; name = strtok_r(NULL, " \n", &rest)) {
		snprintf(line, sizeof line, "+%s", name);
		put(AT_FDCWD, ROOT "/cgroup.subtree_control", line); // one that cannot be is left out
	}
}

// Without swap, a machine that runs out of memory can spend its time reading its programs again and again, and never
// come to an end. The multi-generational LRU ends it: when what was in use a moment ago does not fit, somebody is killed,
// and that is never init (boot.c).
static void end_thrashing(void) {
	put(AT_FDCWD, "/sys/kernel/mm/lru_gen/enabled", "y");
	put(AT_FDCWD, "/sys/kernel/mm/lru_gen/min_ttl_ms", "1000");
}

bool cgroup_open(void) {
	if (mount("cgroup2", ROOT, "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, "nsdelegate") < 0) return false;
	if (mkdir(ROOT "/init", 0755) < 0 || !put(AT_FDCWD, ROOT "/init/cgroup.procs", "0")) return false;
	enable_controllers();
	if (mkdir(ROOT "/workload", 0755) < 0) return false;
	workload = open(ROOT "/workload", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (workload < 0) return false;
	end_thrashing();
	return true;
}

int cgroup_workload(void) {
	return workload;
}

void cgroup_kill(void) {
	put(workload, "cgroup.kill", "1");
}

// The number in a file, or, with a name, the one behind that name in a file of lines "name number". 0 when not there.
static uint64_t get(const char *file_name, const char *name) {
	char text[2048];
	int file = openat(workload, file_name, O_RDONLY | O_CLOEXEC);
	if (file < 0) return 0;
	ssize_t length = read(file, text, sizeof text - 1);
	close(file);
	if (length <= 0) return 0;
	text[length] = 0;
	if (!name) return strtoull(text, NULL, 10);
	size_t name_length = strlen(name);
	for (const char *line = text; line; line = strchr(line, '\n')) {
		if (*line == '\n') line++;
		if (strncmp(line, name, name_length) == 0 && line[name_length] == ' ') return strtoull(line + name_length, NULL, 10);
	}
	return 0;
}

uint64_t cgroup_oom_kills(void) {
	return get("memory.events", "oom_kill");
}

void cgroup_stats(struct cgroup_stats *stats) {
	*stats = (struct cgroup_stats){
		.memory = get("memory.current", NULL),
		.memory_peak = get("memory.peak", NULL),
		.cpu_micros = get("cpu.stat", "usage_usec"),
		.processes = get("pids.current", NULL),
		.oom_kills = cgroup_oom_kills(),
	};
}
