// Finding commands; see command.h.
#define _GNU_SOURCE
#include "command.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "inroot.h"

enum { NOT_EXECUTABLE = 126, NOT_FOUND = 127, MAX_SCRIPT_DEPTH = 4 };

// A path as it is from the working directory. False when it is too long.
static bool resolve(const char *folder, size_t folder_length, const char *name, const char *working_dir, char out[PATH_MAX]) {
	int length;
	if (folder_length > 0 && folder[0] == '/') length = snprintf(out, PATH_MAX, "%.*s/%s", (int)folder_length, folder, name);
	else if (folder_length == 0 && name[0] == '/') length = snprintf(out, PATH_MAX, "%s", name);
	else length = snprintf(out, PATH_MAX, "%s/%.*s/%s", working_dir, (int)folder_length, folder, name);
	return length < PATH_MAX;
}

// 0, or why a file cannot be executed. Leaves it open in `*file`.
static int open_executable(int root, const char *path, int *file) {
	struct stat about;
	*file = inroot_open(root, path, O_PATH);
	if (*file < 0) return errno;
	int error = fstat(*file, &about) < 0 ? errno
	            : S_ISDIR(about.st_mode) ? EISDIR
	            : !S_ISREG(about.st_mode) || (about.st_mode & 0111) == 0 ? EACCES : 0;
	if (error) close(*file);
	return error;
}

// The program behind "#!", or false when the file is no script.
static bool script_interpreter(int root, const char *path, char interpreter[256]) {
	char line[256];
	int file = inroot_open(root, path, O_RDONLY | O_NONBLOCK);
	if (file < 0) return false;
	ssize_t length = read(file, line, sizeof line - 1);
	close(file);
	if (length < 3 || line[0] != '#' || line[1] != '!') return false;
	line[length] = 0;
	char *from = line + 2;
	from += strspn(from, " \t");
	size_t end = strcspn(from, " \t\r\n");
	if (end == 0) return false;
	memcpy(interpreter, from, end);
	interpreter[end] = 0;
	return true;
}

static int check_interpreter(int root, const char *argv0, const char *path, const char *working_dir, char *why, size_t why_capacity) {
	char interpreter[256], at[PATH_MAX], next[PATH_MAX];
	snprintf(at, sizeof at, "%s", path);
	for (int depth = 0; depth < MAX_SCRIPT_DEPTH && script_interpreter(root, at, interpreter); depth++) {
		int file, error = resolve("", 0, interpreter, working_dir, next) ? open_executable(root, next, &file) : ENAMETOOLONG;
		if (error) {
			snprintf(why, why_capacity, "exec: \"%s\": its interpreter \"%s\": %s", argv0, interpreter,
			         error == ENOENT ? "no such file or directory" : strerror(error));
			return error == ENOENT || error == ENOTDIR ? NOT_FOUND : NOT_EXECUTABLE;
		}
		close(file);
		memcpy(at, next, sizeof at);
	}
	return 0;
}

int command_check(int root, const char *argv0, const char *path, const char *working_dir, char *why, size_t why_capacity) {
	char full[PATH_MAX];
	int file;
	if (argv0[0] == 0) {
		snprintf(why, why_capacity, "exec: no command specified");
		return NOT_FOUND;
	}
	if (strchr(argv0, '/')) {
		int error = resolve("", 0, argv0, working_dir, full) ? open_executable(root, full, &file) : ENAMETOOLONG;
		if (error == 0) {
			close(file);
			return check_interpreter(root, argv0, full, working_dir, why, why_capacity);
		}
		snprintf(why, why_capacity, "exec: \"%s\": %s", argv0,
		         error == ENOENT ? "no such file or directory" : error == EISDIR ? "is a directory"
		         : error == EACCES ? "permission denied" : strerror(error));
		return error == ENOENT || error == ENOTDIR ? NOT_FOUND : NOT_EXECUTABLE;
	}
	// What is on the path and cannot be executed is passed over, as Docker does.
	for (const char *folder = path; folder;) {
		const char *end = strchr(folder, ':');
		size_t length = end ? (size_t)(end - folder) : strlen(folder);
		bool fits = length == 0 ? resolve(".", 1, argv0, working_dir, full) : resolve(folder, length, argv0, working_dir, full);
		if (fits && open_executable(root, full, &file) == 0) {
			close(file);
			return check_interpreter(root, argv0, full, working_dir, why, why_capacity);
		}
		folder = end ? end + 1 : NULL;
	}
	snprintf(why, why_capacity, "exec: \"%s\": executable file not found in $PATH", argv0);
	return NOT_FOUND;
}
