// Scanning and writing of JSON; see json.h.
#include "json.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { MAX_DEPTH = 64 };

static bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

static size_t skip_space(struct json in, size_t at) {
	while (at < in.length && is_space(in.text[at])) at++;
	return at;
}

// The offset behind the string that begins at `at`, or 0.
static size_t skip_string(struct json in, size_t at) {
	if (at >= in.length || in.text[at] != '"') return 0;
	for (at++; at < in.length; at++) {
		if (in.text[at] == '"') return at + 1;
		if (in.text[at] == '\\') at++;
	}
	return 0;
}

// The offset behind the value that begins at `at`, or 0. Brackets are counted, not matched by kind: the host is not
// an enemy, and a wrong document fails later.
static size_t skip_value(struct json in, size_t at) {
	unsigned depth = 0;
	size_t from = at;
	while (at < in.length) {
		char c = in.text[at];
		if (c == '"') {
			at = skip_string(in, at);
			if (at == 0) return 0;
			if (depth == 0) return at;
			continue;
		}
		if (c == '{' || c == '[') {
			if (++depth > MAX_DEPTH) return 0;
		} else if (c == '}' || c == ']') {
			if (depth == 0) return at > from ? at : 0;
			if (--depth == 0) return at + 1;
		} else if (depth == 0 && (c == ',' || is_space(c))) {
			return at > from ? at : 0;
		}
		at++;
	}
	return depth == 0 && at > from ? at : 0;
}

struct json json_field(struct json object, const char *name) {
	const struct json none = { NULL, 0 };
	size_t name_length = strlen(name);
	if (!object.text) return none;
	size_t at = skip_space(object, 0);
	if (at >= object.length || object.text[at] != '{') return none;
	at++;
	for (;;) {
		at = skip_space(object, at);
		size_t key_end = skip_string(object, at);
		if (key_end == 0) return none;
		bool found = key_end - at == name_length + 2 && memcmp(object.text + at + 1, name, name_length) == 0;
		at = skip_space(object, key_end);
		if (at >= object.length || object.text[at] != ':') return none;
		at = skip_space(object, at + 1);
		size_t end = skip_value(object, at);
		if (end == 0) return none;
		if (found) return (struct json){ object.text + at, end - at };
		at = skip_space(object, end);
		if (at >= object.length || object.text[at] != ',') return none;
		at++;
	}
}

struct json json_element(struct json array, size_t *at) {
	const struct json none = { NULL, 0 };
	if (!array.text) return none;
	size_t from = skip_space(array, *at);
	if (from >= array.length || array.text[from] != (*at == 0 ? '[' : ',')) return none;
	from = skip_space(array, from + 1);
	size_t end = skip_value(array, from);
	if (end == 0) return none;
	*at = end;
	return (struct json){ array.text + from, end - from };
}

static int hex_digits(const char *text) {
	int value = 0;
	for (int i = 0; i < 4; i++) {
		char c = text[i];
		int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
		if (digit < 0) return -1;
		value = value * 16 + digit;
	}
	return value;
}

static size_t put_utf8(uint32_t code, char *out) {
	if (code < 0x80) {
		out[0] = (char)code;
		return 1;
	}
	if (code < 0x800) {
		out[0] = (char)(0xc0 | code >> 6);
		out[1] = (char)(0x80 | (code & 0x3f));
		return 2;
	}
	if (code < 0x10000) {
		out[0] = (char)(0xe0 | code >> 12);
		out[1] = (char)(0x80 | (code >> 6 & 0x3f));
		out[2] = (char)(0x80 | (code & 0x3f));
		return 3;
	}
	out[0] = (char)(0xf0 | code >> 18);
	out[1] = (char)(0x80 | (code >> 12 & 0x3f));
	out[2] = (char)(0x80 | (code >> 6 & 0x3f));
	out[3] = (char)(0x80 | (code & 0x3f));
	return 4;
}

// The character of the escape behind a backslash at `*at`, which moves on; -1 when it is wrong.
static long unescape(struct json value, size_t *at) {
	static const char names[] = "\"\\/bfnrt", characters[] = "\"\\/\b\f\n\r\t";
	size_t end = value.length - 1; // the closing quote
	if (*at >= end) return -1;
	char c = value.text[(*at)++];
	if (c != 'u') {
		const char *name = c ? strchr(names, c) : NULL;
		return name ? (unsigned char)characters[name - names] : -1;
	}
	if (end - *at < 4) return -1;
	long code = hex_digits(value.text + *at);
	if (code < 0) return -1;
	*at += 4;
	if (code < 0xd800 || code > 0xdfff) return code;
	if (code < 0xdc00 && end - *at >= 6 && value.text[*at] == '\\' && value.text[*at + 1] == 'u') {
		int low = hex_digits(value.text + *at + 2);
		if (low >= 0xdc00 && low <= 0xdfff) {
			*at += 6;
			return 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
		}
	}
	return 0xfffd; // half of a pair stands for nothing
}

long json_string(struct json value, char *out, size_t capacity) {
	size_t length = 0;
	if (!value.text || value.length < 2 || value.text[0] != '"' || value.text[value.length - 1] != '"') return -1;
	for (size_t at = 1; at < value.length - 1;) {
		if (length + 5 > capacity) return -1;
		char c = value.text[at++];
		if (c == '\\') {
			long code = unescape(value, &at);
			if (code <= 0) return -1;
			length += put_utf8((uint32_t)code, out + length);
		} else {
			if (c == 0) return -1;
			out[length++] = c;
		}
	}
	if (length >= capacity) return -1;
	out[length] = 0;
	return (long)length;
}

bool json_is_true(struct json value) {
	return value.text && value.length == 4 && memcmp(value.text, "true", 4) == 0;
}

unsigned json_number(struct json value, unsigned max, unsigned otherwise) {
	uint64_t number = 0;
	if (!value.text || value.length == 0 || value.length > 10) return otherwise;
	for (size_t i = 0; i < value.length; i++) {
		if (value.text[i] < '0' || value.text[i] > '9') return otherwise;
		number = number * 10 + (uint64_t)(value.text[i] - '0');
	}
	return number <= max ? (unsigned)number : otherwise;
}

long json_quote(const char *text, char *out, size_t capacity) {
	size_t length = 0;
	if (capacity < 3) return -1;
	out[length++] = '"';
	for (; *text; text++) {
		unsigned char c = (unsigned char)*text;
		if (length + 8 > capacity) return -1;
		if (c == '"' || c == '\\') {
			out[length++] = '\\';
			out[length++] = (char)c;
		} else if (c < 0x20) {
			length += (size_t)snprintf(out + length, 7, "\\u%04x", c);
		} else {
			out[length++] = (char)c;
		}
	}
	out[length++] = '"';
	out[length] = 0;
	return (long)length;
}

struct replacement {
	const char *token;
	const char *by;
};

long json_put_user(const char *document, size_t length, const char *user, const char *home, char *out, size_t capacity) {
	char quoted_home[4200], whole_home[4096 + 8], whole_user[2048];
	struct replacement replacements[2] = { { "\"user\":\"@USER@\"", whole_user }, { "\"HOME=@HOME@\"", quoted_home } };
	int count = home ? 2 : 1;
	if ((size_t)snprintf(whole_user, sizeof whole_user, "\"user\":%s", user) >= sizeof whole_user) return -1;
	if (home) {
		if ((size_t)snprintf(whole_home, sizeof whole_home, "HOME=%s", home) >= sizeof whole_home) return -1;
		if (json_quote(whole_home, quoted_home, sizeof quoted_home) < 0) return -1;
	}
	size_t done = 0;
	for (size_t at = 0; at < length;) {
		const struct replacement *found = NULL;
		if (document[at] == '"') {
			for (int i = 0; i < count; i++) {
				size_t token = strlen(replacements[i].token);
				if (length - at >= token && memcmp(document + at, replacements[i].token, token) == 0) found = &replacements[i];
			}
		}
		const char *from = found ? found->by : document + at;
		size_t part = found ? strlen(found->by) : 1;
		if (done + part >= capacity) return -1;
		memcpy(out + done, from, part);
		done += part;
		at += found ? strlen(found->token) : 1;
	}
	out[done] = 0;
	return (long)done;
}
