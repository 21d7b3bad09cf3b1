// Paths inside the container's root; see inroot.h.
#define _GNU_SOURCE
#include "inroot.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

int inroot_open(int root, const char *path, int flags) {
	struct open_how how = { .flags = (unsigned)(flags | O_CLOEXEC), .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS };
	return (int)syscall(SYS_openat2, root, path, &how, sizeof how);
}

bool inroot_write(int root, const char *path, const char *text, size_t length) {
	// Whatever an image may have there: not blocking on a pipe, and nothing but a regular file.
	struct open_how how = { .flags = O_WRONLY | O_CREAT | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, .mode = 0644,
	                        .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS };
	int file = (int)syscall(SYS_openat2, root, path, &how, sizeof how);
	if (file < 0) return false;
	struct stat about;
	bool done = fstat(file, &about) == 0 && S_ISREG(about.st_mode) && ftruncate(file, 0) == 0 &&
	            write(file, text, length) == (ssize_t)length;
	close(file);
	return done;
}

bool inroot_make_folder(int root, const char *path) {
	char prefix[PATH_MAX];
	size_t length = strlen(path);
	if (length == 0 || length >= sizeof prefix) {
		errno = ENAMETOOLONG;
		return false;
	}
	int parent = inroot_open(root, "/", O_PATH | O_DIRECTORY);
	for (size_t at = 0; at < length && parent >= 0;) {
		while (path[at] == '/') at++;
		size_t end = at;
		while (end < length && path[end] != '/') end++;
		if (end == at) break;
		memcpy(prefix, path, end);
		prefix[end] = 0;
		int folder = inroot_open(root, prefix, O_PATH | O_DIRECTORY);
		if (folder < 0 && errno == ENOENT && mkdirat(parent, prefix + at, 0755) == 0) {
			folder = inroot_open(root, prefix, O_PATH | O_DIRECTORY);
		}
		int error = errno;
		close(parent);
		errno = error;
		parent = folder;
		at = end;
	}
	if (parent < 0) return false;
	close(parent);
	return true;
}

ssize_t inroot_read(int root, const char *path, char *out, size_t capacity) {
	// Not blocking, and only a regular file: an image may have a pipe there.
	int file = inroot_open(root, path, O_RDONLY | O_NONBLOCK | O_NOCTTY);
	if (file < 0) return -1;
	struct stat about;
	if (fstat(file, &about) < 0 || !S_ISREG(about.st_mode)) {
		close(file);
		errno = EINVAL;
		return -1;
	}
	size_t length = 0;
	while (length < capacity) {
		ssize_t count = read(file, out + length, capacity - length);
		if (count < 0 && errno == EINTR) continue;
		if (count <= 0) break;
		length += (size_t)count;
	}
	close(file);
	if (length == capacity) {
		while (length > 0 && out[length - 1] != '\n') length--;
	}
	return (ssize_t)length;
}
