// Where the time goes, in the kernel's log, when built with -DTRACING. Otherwise nothing.
#pragma once
#ifdef TRACING
#include <fcntl.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>
static inline void trace(const char *what) {
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	char line[128];
	int length = snprintf(line, sizeof line, "<2>%ld.%06ld %s\n", (long)now.tv_sec, now.tv_nsec / 1000, what);
	int log = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);
	if (write(log, line, (size_t)length) < 0) _exit(1);
	close(log);
}
#define TRACE(what) trace(what)
#else
#define TRACE(what) ((void)0)
#endif
