// For a test: tries what a jail must not allow, and prints what came of each. Outside a jail most of them succeed.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void say(const char *name, long result) {
	printf("%s %s\n", name, result < 0 ? strerrorname_np(errno) : "ok");
}

int main(int count, char **arguments) {
	(void) arguments;
	setvbuf(stdout, NULL, _IOLBF, 0);
	long child = fork();
	if (child == 0) _exit(0);
	say("fork", child);
	if (child > 0) waitpid(child, NULL, 0); // or its SIGCHLD would stop us for good, once we are traced
	say("ptrace", ptrace(PTRACE_TRACEME, 0, 0, 0));
	say("inet", socket(AF_INET, SOCK_STREAM, 0));
	say("netlink", socket(AF_NETLINK, SOCK_RAW, 0));
	say("unix", socket(AF_UNIX, SOCK_STREAM, 0));
	say("keyctl", syscall(SYS_keyctl, 0, -2, 1));
	say("io_uring", syscall(SYS_io_uring_setup, 0, 0) < 0 && errno == EFAULT ? 0 : -1);
	say("bpf", syscall(SYS_bpf, 0, 0, 0) < 0 && errno == EINVAL ? 0 : -1);
	say("write", open("written", O_CREAT | O_WRONLY, 0600));
	say("getpid", syscall(SYS_getpid));
	say("unshare", unshare(CLONE_NEWUSER));
	if (count > 1) pause();
	return 0;
}
