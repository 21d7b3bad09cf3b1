// Running crun; see runtime.h.
#define _GNU_SOURCE
#include "runtime.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "cgroup.h"
#include "process.h"
#include "trace.h"

#define FOLDER "/run/workload"
#define CONTAINER "workload"

enum { EXECUTED_FD = 3, TOLD_BYTES = 4096 };

void runtime_path(const char *what, unsigned id, char path[64]) {
	if (strcmp(what, "config") == 0) snprintf(path, 64, FOLDER "/config.json");
	else snprintf(path, 64, FOLDER "/%s-%u", what, id);
}

static int program = -1;

bool runtime_open(void) {
	int source = open("/usr/bin/crun", O_RDONLY | O_CLOEXEC);
	program = memfd_create("crun", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (source < 0 || program < 0) return false;
	while (sendfile(program, source, NULL, 1 << 20) > 0) {
	}
	close(source);
	return fcntl(program, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) == 0;
}

struct streams {
	int child[4]; // stdin, stdout, stderr, and what is closed by executing
	int ours[4];
};

static void close_all(int fds[4]) {
	for (int i = 0; i < 4; i++) {
		if (fds[i] >= 0) close(fds[i]);
		fds[i] = -1;
	}
}

// Of each pipe only our end is non-blocking: the other one is the program's, which expects pipes to block.
static bool open_streams(struct streams *streams, bool tty, bool with_stdin) {
	for (int i = 0; i < 4; i++) streams->child[i] = streams->ours[i] = -1;
	for (int i = 0; i < 4; i++) {
		int ends[2];
		if ((tty && i < 3) || (i == 0 && !with_stdin)) {
			streams->child[i] = open("/dev/null", O_RDWR | O_CLOEXEC);
			if (streams->child[i] < 0) return false;
			continue;
		}
		if (pipe2(ends, O_CLOEXEC) < 0) return false;
		streams->ours[i] = ends[i == 0];
		streams->child[i] = ends[i != 0];
		if (fcntl(streams->ours[i], F_SETFL, O_NONBLOCK) < 0) return false;
	}
	return true;
}

// The runtime connects to this and sends the terminal.
static int listen_for_terminal(unsigned id) {
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	char path[64];
	runtime_path("tty", id, path);
	snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
	unlink(path);
	int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (listener < 0) return -1;
	if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 1) < 0) {
		close(listener);
		return -1;
	}
	return listener;
}

static void write_own_file(const char *path, const char *text) {
	int file = open(path, O_WRONLY | O_CLOEXEC);
	if (file < 0) return;
	if (write(file, text, strlen(text)) < 0) _exit(125);
	close(file);
}

static void become_runtime(const struct streams *streams, char *const arguments[]) {
	static char *const environment[] = { "PATH=/usr/bin", NULL };
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
	write_own_file("/proc/self/oom_score_adj", "0");
	int high[4]; // first out of the way of one another
	for (int i = 0; i < 4; i++) high[i] = fcntl(streams->child[i], F_DUPFD_CLOEXEC, 16);
	for (int i = 0; i < 4; i++) {
		if (dup2(high[i], i) < 0) _exit(125);
	}
	fexecve(program, arguments, environment);
	_exit(125);
}

static bool fork_into_workload(const struct streams *streams, char *const arguments[]) {
	struct clone_args clone = {
		.flags = CLONE_INTO_CGROUP,
		.exit_signal = SIGCHLD,
		.cgroup = (uint64_t)cgroup_workload(),
	};
	long child = syscall(SYS_clone3, &clone, sizeof clone);
	if (child == 0) become_runtime(streams, arguments);
	return child > 0;
}

bool runtime_launch(struct process *process, bool exec, bool with_stdin, char *why, size_t why_capacity) {
	char log[80] = "--log=", pid[80] = "--pid-file=", terminal[80] = "--console-socket=", file[80] = "--process=";
	runtime_path("log", process->id, log + strlen(log));
	runtime_path("pid", process->id, pid + strlen(pid));
	runtime_path("tty", process->id, terminal + strlen(terminal));
	runtime_path("process", process->id, file + strlen(file));
	unlink(strchr(log, '/'));
	unlink(strchr(pid, '/'));
	char *arguments[16] = { "crun", "--root=/run/containers", "--cgroup-manager=disabled", log };
	int count = 4;
	arguments[count++] = exec ? "exec" : "run";
	arguments[count++] = "--detach";
	arguments[count++] = pid;
	if (exec) {
		arguments[count++] = file;
	} else {
		arguments[count++] = "--bundle=" FOLDER;
		arguments[count++] = "--no-new-keyring";
	}
	if (process->tty) arguments[count++] = terminal;
	arguments[count] = CONTAINER;
	struct streams streams;
	bool launched = open_streams(&streams, process->tty, with_stdin);
	if (launched && process->tty) {
		process->console_fd = listen_for_terminal(process->id);
		process->console_listens = true;
		launched = process->console_fd >= 0 && watch(process->console_fd, EPOLLIN, SOURCE_CONSOLE, process_index(process));
	}
	launched = launched && fork_into_workload(&streams, arguments);
	int error = errno;
	close_all(streams.child);
	if (!launched) {
		close_all(streams.ours);
		snprintf(why, why_capacity, "the container's runtime could not be run: %s", strerror(error));
		return false;
	}
	process->executed_fd = streams.ours[3];
	watch(process->executed_fd, EPOLLIN, SOURCE_EXECUTED, process_index(process));
	if (!process->tty) process_attach(process, streams.ours[0], streams.ours[1], streams.ours[2]);
	TRACE("launched");
	return true;
}

int runtime_take_terminal(struct process *process) {
	if (process->console_fd >= 0 && process->console_listens) {
		int connection = accept4(process->console_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
		if (connection < 0) return -1;
		close(process->console_fd);
		process->console_fd = connection;
		process->console_listens = false;
		watch(connection, EPOLLIN, SOURCE_CONSOLE, process_index(process));
	}
	char name[64], control[CMSG_SPACE(sizeof(int))];
	struct iovec vector = { name, sizeof name };
	struct msghdr message = { .msg_iov = &vector, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
	ssize_t count = recvmsg(process->console_fd, &message, MSG_CMSG_CLOEXEC);
	if (count < 0) return -1;
	close(process->console_fd);
	process->console_fd = -1;
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	if (!header || header->cmsg_type != SCM_RIGHTS || header->cmsg_len != CMSG_LEN(sizeof(int))) return -1;
	int terminal;
	memcpy(&terminal, CMSG_DATA(header), sizeof terminal);
	fcntl(terminal, F_SETFL, fcntl(terminal, F_GETFL) | O_NONBLOCK);
	return terminal;
}

static size_t read_text(const char *path, char *text, size_t capacity) {
	int file = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t length = file < 0 ? -1 : read(file, text, capacity - 1);
	if (file >= 0) close(file);
	if (length < 0) length = 0;
	text[length] = 0;
	return (size_t)length;
}

pid_t runtime_outcome(const struct process *process, char *told, size_t told_capacity) {
	char path[64], text[TOLD_BYTES];
	runtime_path("log", process->id, path);
	read_text(path, text, sizeof text);
	text[strcspn(text, "\n")] = 0;
	snprintf(told, told_capacity, "%s", text);
	runtime_path("pid", process->id, path);
	read_text(path, text, sizeof text);
	return (pid_t)strtol(text, NULL, 10);
}
