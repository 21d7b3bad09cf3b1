// The guest's first program: brings the machine up, then serves the host over the channel until it is told to stop.
// One thread, one loop, nothing in it waits for anything but events.
#define _GNU_SOURCE
#include <signal.h>
#include <stdbool.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "boot.h"
#include "channel.h"
#include "container.h"
#include "process.h"
#include "runtime.h"
#include "trace.h"

enum { MAX_EVENTS = 64 };

static int watch_children(void) {
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	return signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
}

static void reap(int children) {
	struct signalfd_siginfo info;
	while (read(children, &info, sizeof info) > 0) {
	}
	container_reap();
}

static void handle(enum source source, int index, int children, bool *readable) {
	struct process *process = &processes[index];
	if (source == SOURCE_PORT) *readable = true;
	else if (source == SOURCE_CHILDREN) reap(children);
	else if (!process->used) return; // its slot was given back by an event before this one
	else if (source == SOURCE_STDOUT || source == SOURCE_STDERR) output_read(process, source - SOURCE_STDOUT);
	else if (source == SOURCE_STDIN) input_write(process);
	else if (source == SOURCE_EXECUTED && process->executed_fd >= 0) container_executed(process);
	else if (source == SOURCE_CONSOLE && process->console_fd >= 0) container_console(process);
}

int main(void) {
	const char *why = NULL;
	boot_system();
	int epoll = epoll_create1(EPOLL_CLOEXEC);
	processes_open(epoll);
	boot_network();
	int root = boot_root(&why);
	int port = boot_port(), children = watch_children();
	TRACE("port");
	if (!runtime_open()) boot_give_up("runtime");
	TRACE("runtime");
	container_open(root, why);
	if (port < 0 || children < 0) boot_give_up("channel");
	channel_open(port);
	// By edges: while the host is away, the port would report that without end.
	watch(port, EPOLLIN | EPOLLOUT | EPOLLET, SOURCE_PORT, 0);
	watch(children, EPOLLIN, SOURCE_CHILDREN, 0);
	bool readable = true, writable = true;
	for (;;) {
		struct epoll_event events[MAX_EVENTS];
		int wait_ms = processes_settle();
		writable = channel_write();
		int count = epoll_wait(epoll, events, MAX_EVENTS, readable || writable ? 0 : wait_ms);
		for (int i = 0; i < count; i++) {
			handle((enum source)(events[i].data.u64 >> 32), (int)(uint32_t)events[i].data.u64, children, &readable);
		}
		if (readable) readable = channel_read();
	}
}
