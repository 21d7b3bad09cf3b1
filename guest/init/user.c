// Looking users and groups up; see user.h.
#include "user.h"

#include <stdio.h>
#include <string.h>

struct text {
	const char *at;
	size_t length;
};

static bool same(struct text field, const char *name, size_t length) {
	return field.length == length && memcmp(field.at, name, length) == 0;
}

// The next piece of `rest` up to `separator`, which is taken off.
static bool next_piece(struct text *rest, char separator, struct text *piece) {
	if (!rest->at) return false;
	const char *end = memchr(rest->at, separator, rest->length);
	piece->at = rest->at;
	piece->length = end ? (size_t)(end - rest->at) : rest->length;
	*rest = end ? (struct text){ end + 1, rest->length - piece->length - 1 } : (struct text){ NULL, 0 };
	return true;
}

static unsigned split_fields(struct text line, struct text fields[7]) {
	unsigned count = 0;
	while (count < 7 && next_piece(&line, ':', &fields[count])) count++;
	return count;
}

// Ids are 0 to 2^31 - 1, as Docker has them.
static bool parse_id(struct text field, uint32_t *id) {
	uint64_t value = 0;
	if (field.length == 0 || field.length > 10) return false;
	for (size_t i = 0; i < field.length; i++) {
		if (field.at[i] < '0' || field.at[i] > '9') return false;
		value = value * 10 + (uint64_t)(field.at[i] - '0');
	}
	*id = (uint32_t)value;
	return value <= INT32_MAX;
}

static bool has_member(struct text members, struct text name) {
	struct text member;
	while (next_piece(&members, ',', &member)) {
		if (member.length > 0 && same(member, name.at, name.length)) return true;
	}
	return false;
}

static void add_group(struct user *user, uint32_t gid) {
	for (unsigned i = 0; i < user->group_count; i++) {
		if (user->groups[i] == gid) return;
	}
	if (user->group_count < MAX_GROUPS) user->groups[user->group_count++] = gid;
}

// The first line of passwd whose name is `wanted` or, when that is a number, whose uid it is.
static bool find_in_passwd(struct text wanted, struct text lines, struct user *user, struct text *name) {
	uint32_t number = 0, uid, gid;
	bool numeric = parse_id(wanted, &number);
	struct text line, fields[7];
	while (next_piece(&lines, '\n', &line)) {
		if (split_fields(line, fields) < 6 || !parse_id(fields[2], &uid) || !parse_id(fields[3], &gid)) continue;
		if (!same(fields[0], wanted.at, wanted.length) && !(numeric && uid == number)) continue;
		user->uid = uid;
		user->gid = gid;
		*name = fields[0];
		if (fields[5].length > 0 && fields[5].length < MAX_HOME && !memchr(fields[5].at, 0, fields[5].length)) {
			memcpy(user->home, fields[5].at, fields[5].length);
			user->home[fields[5].length] = 0;
		}
		return true;
	}
	user->uid = number;
	return numeric;
}

static bool find_group(struct text wanted, struct text lines, uint32_t *found) {
	uint32_t number = 0, gid;
	bool numeric = parse_id(wanted, &number);
	struct text line, fields[7];
	while (next_piece(&lines, '\n', &line)) {
		if (split_fields(line, fields) < 3 || !parse_id(fields[2], &gid)) continue;
		if (same(fields[0], wanted.at, wanted.length) || (numeric && gid == number)) {
			*found = gid;
			return true;
		}
	}
	*found = number;
	return numeric;
}

bool user_find(const char *wanted, const char *passwd, size_t passwd_length, const char *group, size_t group_length,
               struct user *user, char *why, size_t why_capacity) {
	const struct text passwd_lines = { passwd, passwd_length }, group_lines = { group, group_length };
	struct text rest = { wanted, strlen(wanted) }, user_part, group_part = { NULL, 0 }, name = { NULL, 0 };
	next_piece(&rest, ':', &user_part);
	if (rest.at) group_part = rest;
	if (user_part.length == 0) user_part = (struct text){ "0", 1 };
	*user = (struct user){ .home = "/" };
	if (!find_in_passwd(user_part, passwd_lines, user, &name)) {
		snprintf(why, why_capacity, "unable to find user %.*s: no matching entries in passwd file",
		         (int)user_part.length, user_part.at);
		return false;
	}
	if (group_part.length > 0) {
		if (!find_group(group_part, group_lines, &user->gid)) {
			snprintf(why, why_capacity, "unable to find group %.*s: no matching entries in group file",
			         (int)group_part.length, group_part.at);
			return false;
		}
		add_group(user, user->gid);
		return true;
	}
	// The first group is listed too: without it, setgroups would drop what files deny to that group.
	add_group(user, user->gid);
	struct text lines = group_lines, line, fields[7];
	uint32_t gid;
	while (name.at && next_piece(&lines, '\n', &line)) {
		if (split_fields(line, fields) >= 4 && parse_id(fields[2], &gid) && has_member(fields[3], name)) add_group(user, gid);
	}
	return true;
}

long user_to_json(const struct user *user, char *out, size_t capacity) {
	size_t done = 0;
	int count = snprintf(out, capacity, "{\"uid\":%u,\"gid\":%u,\"additionalGids\":[", user->uid, user->gid);
	done += (size_t)count;
	for (unsigned i = 0; i < user->group_count && done < capacity; i++) {
		done += (size_t)snprintf(out + done, capacity - done, "%s%u", i ? "," : "", user->groups[i]);
	}
	if (done + 3 > capacity) return -1;
	memcpy(out + done, "]}", 3);
	return (long)done + 2;
}
