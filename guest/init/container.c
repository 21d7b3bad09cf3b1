// Preparing containers and running them; see container.h.
#define _GNU_SOURCE
#include "container.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cgroup.h"
#include "command.h"
#include "frame.h"
#include "inroot.h"
#include "json.h"
#include "process.h"
#include "runtime.h"
#include "trace.h"
#include "user.h"

enum { OTHER = 125, NO_USER = 124, MAX_VOLUMES = 128, MAX_FILES = 8, MAX_FILE = 4096, MAX_ACCOUNTS = 262144, REAPED = 256, USER_ROOM = 8192 };

static int root_fd = -1;
static const char *no_root;

// What has ended before it was known to be somebody's: an exec may be over before its pid is read.
static struct {
	pid_t pid;
	int status;
} reaped[REAPED];
static unsigned reaped_next;

void container_open(int root, const char *why) {
	root_fd = root;
	no_root = why;
}

struct request {
	bool tty, stdin, has_home;
	unsigned rows, columns;
	char user[256], argv0[PATH_MAX], working_dir[PATH_MAX];
	char *path;
	char *document; // config or process
	long document_length;
};

static bool get_string(struct json object, const char *name, char *out, size_t capacity) {
	struct json value = json_field(object, name);
	out[0] = 0;
	return !value.text || json_string(value, out, capacity) >= 0;
}

// As long as it may be; the length, or -1. To be freed.
static long get_long_string(struct json object, const char *name, char **out) {
	struct json value = json_field(object, name);
	size_t capacity = value.length + 8; // what unescaping never exceeds
	*out = calloc(1, capacity);
	return !*out ? -1 : value.text ? json_string(value, *out, capacity) : 0;
}

static bool parse_request(struct json object, const char *document_name, struct request *request) {
	request->tty = json_is_true(json_field(object, "tty"));
	request->stdin = json_is_true(json_field(object, "stdin"));
	request->has_home = json_is_true(json_field(object, "hasHome"));
	request->rows = json_number(json_field(object, "rows"), 65535, 0);
	request->columns = json_number(json_field(object, "columns"), 65535, 0);
	request->document_length = get_long_string(object, document_name, &request->document);
	bool strings = get_string(object, "user", request->user, sizeof request->user) &&
	               get_string(object, "argv0", request->argv0, sizeof request->argv0) &&
	               get_long_string(object, "path", &request->path) >= 0 &&
	               get_string(object, "workingDir", request->working_dir, sizeof request->working_dir);
	if (request->working_dir[0] == 0) strcpy(request->working_dir, "/");
	return strings && request->document_length > 0;
}

// The contents of passwd and group belong to the image: bounded, and whatever they are.
static bool find_user(const char *wanted, struct user *user, char *why, size_t why_capacity) {
	static char passwd[MAX_ACCOUNTS], group[MAX_ACCOUNTS];
	ssize_t passwd_length = inroot_read(root_fd, "/etc/passwd", passwd, sizeof passwd);
	ssize_t group_length = inroot_read(root_fd, "/etc/group", group, sizeof group);
	return user_find(wanted, passwd, passwd_length < 0 ? 0 : (size_t)passwd_length, group,
	                 group_length < 0 ? 0 : (size_t)group_length, user, why, why_capacity);
}

static bool write_file(const char *path, const char *text, size_t length) {
	int file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (file < 0) return false;
	bool done = write(file, text, length) == (ssize_t)length;
	close(file);
	return done;
}

// 0, or the code to fail with, and why.
static int make_folders(struct json object, const struct request *request, char *why, size_t why_capacity) {
	char volume[PATH_MAX];
	size_t at = 0;
	if (!inroot_make_folder(root_fd, request->working_dir)) {
		snprintf(why, why_capacity, "working directory %s: %s", request->working_dir, strerror(errno));
		return OTHER;
	}
	struct json volumes = json_field(object, "volumes");
	for (int i = 0; i <= MAX_VOLUMES; i++) {
		struct json value = json_element(volumes, &at);
		if (!value.text) return 0;
		if (i == MAX_VOLUMES) break;
		if (json_string(value, volume, sizeof volume) < 0 || !inroot_make_folder(root_fd, volume)) {
			snprintf(why, why_capacity, "volume %d: %s", i, strerror(errno));
			return OTHER;
		}
	}
	snprintf(why, why_capacity, "more than %d volumes", MAX_VOLUMES);
	return OTHER;
}

// Paths and contents by turns. An image in which one cannot be made goes without it, as it would without a host.
static void make_files(struct json object) {
	char path[PATH_MAX], text[MAX_FILE];
	struct json files = json_field(object, "files");
	size_t at = 0;
	for (int i = 0; i < MAX_FILES; i++) {
		struct json name = json_element(files, &at), content = json_element(files, &at);
		if (!name.text || !content.text || json_string(name, path, sizeof path) < 0) return;
		long length = json_string(content, text, sizeof text);
		char *slash = strrchr(path, '/');
		if (length < 0 || !slash || slash == path) return;
		*slash = 0;
		bool made = inroot_make_folder(root_fd, path);
		*slash = '/';
		if (made) inroot_write(root_fd, path, text, (size_t)length);
	}
}

static int prepare(struct json object, const char *document_name, const char *file, struct request *request, char *why, size_t why_capacity) {
	char user_json[1600];
	struct user user;
	if (root_fd < 0) {
		snprintf(why, why_capacity, "%s", no_root);
		return OTHER;
	}
	if (!parse_request(object, document_name, request)) {
		snprintf(why, why_capacity, "the request is not understood");
		return OTHER;
	}
	int code = make_folders(object, request, why, why_capacity);
	if (code) return code;
	make_files(object);
	if (!find_user(request->user, &user, why, why_capacity)) return NO_USER;
	code = command_check(root_fd, request->argv0, request->path, request->working_dir, why, why_capacity);
	if (code) return code;
	size_t capacity = (size_t)request->document_length + USER_ROOM;
	char *document = malloc(capacity);
	long length = !document || user_to_json(&user, user_json, sizeof user_json) < 0 ? -1
	              : json_put_user(request->document, (size_t)request->document_length, user_json,
	                              request->has_home ? NULL : user.home, document, capacity);
	bool written = length >= 0 && write_file(file, document, (size_t)length);
	free(document);
	if (!written) snprintf(why, why_capacity, "the request does not fit");
	return written ? 0 : OTHER;
}

// What ended long ago must not be taken for a new process with the same pid.
static void forget_reaped(void) {
	for (int i = 0; i <= MAX_PROCESSES; i++) {
		if (processes[i].executed_fd > 0 && processes[i].used) return; // somebody's pid is still to be known
	}
	memset(reaped, 0, sizeof reaped);
}

static void launch(struct process *process, struct json object, bool exec) {
	struct request request = { 0 };
	char why[MAX_TEXT], file[64];
	forget_reaped();
	runtime_path(exec ? "process" : "config", process->id, file);
	int code = prepare(object, exec ? "process" : "config", file, &request, why, sizeof why);
	free(request.document);
	free(request.path);
	if (code) return process_fail(process, (uint8_t)code, why);
	TRACE("prepared");
	process->tty = request.tty;
	process->rows = (uint16_t)request.rows;
	process->columns = (uint16_t)request.columns;
	process->oom_kills_before = exec ? cgroup_oom_kills() : 0;
	if (!runtime_launch(process, exec, request.stdin, why, sizeof why)) process_fail(process, OTHER, why);
}

static const char TOO_LONG[] = "the command line and environment are too long for the guest";

bool container_start(struct json request) {
	TRACE("start");
	struct process *process = process_make(0);
	if (!process) return false;
	if (request.text) launch(process, request, false);
	else process_fail(process, OTHER, TOO_LONG);
	return true;
}

bool container_exec(unsigned short id, struct json request) {
	struct process *process = process_make(id);
	if (!process) return false;
	if (processes[0].state != RUNNING || processes[0].exited) process_fail(process, OTHER, "the container is not running");
	else if (request.text) launch(process, request, true);
	else process_fail(process, OTHER, TOO_LONG);
	return true;
}

void container_console(struct process *process) {
	int terminal = runtime_take_terminal(process);
	if (terminal < 0) return;
	if (process->rows || process->columns) {
		process->outputs[0].fd = terminal;
		process_resize(process, process->rows, process->columns);
	}
	process_attach(process, dup(terminal), terminal, -1);
}

// The runtime's words, and the exit code that shells and Docker give to such an end.
static void fail_as_told(struct process *process, const char *told) {
	uint8_t code = strstr(told, "Exec format error") || strstr(told, "exec format error") || strstr(told, "Permission denied") ? 126
	               : strstr(told, "No such file") || strstr(told, "not found") ? 127 : OTHER;
	process_fail(process, code, told[0] ? told : "the container's runtime ended without a word");
}

void container_executed(struct process *process) {
	char told[MAX_TEXT];
	TRACE("executed");
	if (process->tty && process->outputs[0].fd < 0) container_console(process);
	close(process->executed_fd);
	process->executed_fd = -1;
	pid_t pid = runtime_outcome(process, told, sizeof told);
	if (process->state == STARTING) {
		if (pid <= 0 || told[0]) return fail_as_told(process, told);
		if (process->tty && process->outputs[0].fd < 0) process->outputs[0].ended = process->outputs[1].ended = true;
		process_started(process);
	}
	process_found(process, pid);
	for (unsigned i = 0; i < REAPED; i++) {
		if (reaped[i].pid != process->pid) continue;
		reaped[i].pid = 0;
		process_exited(process, reaped[i].status, cgroup_oom_kills());
	}
}

void container_reap(void) {
	int status;
	pid_t pid;
	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		struct process *found = NULL;
		for (int i = 0; i <= MAX_PROCESSES; i++) {
			if (processes[i].used && processes[i].pid == pid && !processes[i].exited) found = &processes[i];
		}
		if (found) {
			process_exited(found, status, cgroup_oom_kills());
		} else {
			reaped[reaped_next].pid = pid;
			reaped[reaped_next].status = status;
			reaped_next = (reaped_next + 1) % REAPED;
		}
	}
}
