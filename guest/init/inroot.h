// Paths inside the container's root folder, as a process in it would see them: symbolic links and ".." cannot lead out.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

// As openat, with `root` in place of "/". A descriptor, or -1 with errno.
int inroot_open(int root, const char *path, int flags);
// Makes the folder and those above it that are missing (0755, root's).
bool inroot_make_folder(int root, const char *path);
// Makes a regular file (0644, root's) of this content, or gives one that is there this content.
bool inroot_write(int root, const char *path, const char *text, size_t length);
// Reads a file whole, at most `capacity` bytes (a longer one is cut at its last whole line). -1 with errno.
ssize_t inroot_read(int root, const char *path, char *out, size_t capacity);
