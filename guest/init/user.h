// Who a process runs as, by Docker's rules: "name or uid" and optionally ":group or gid", looked up in the image.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { MAX_GROUPS = 128, MAX_HOME = 1024 };

struct user {
	uint32_t uid, gid;
	uint32_t groups[MAX_GROUPS];
	unsigned group_count;
	char home[MAX_HOME];
};

// `passwd` and `group` are the files' contents. False: no such user or group, and `why` says so.
bool user_find(const char *wanted, const char *passwd, size_t passwd_length, const char *group, size_t group_length,
               struct user *user, char *why, size_t why_capacity);
// The OCI user object. Gives its length, or -1 when it is too long.
long user_to_json(const struct user *user, char *out, size_t capacity);
