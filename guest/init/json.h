// The little of JSON that the guest needs: fields of one flat object, and putting the user into a document that the
// host wrote. Nothing here trusts its input, and nothing is a general parser.
#pragma once
#include <stdbool.h>
#include <stddef.h>

// A value inside a document; `text` is NULL when it is not there.
struct json {
	const char *text;
	size_t length;
};

// The value of a field of the object that `object` is.
struct json json_field(struct json object, const char *name);
// The next element of an array: begin with *at = 0. `text` is NULL after the last one.
struct json json_element(struct json array, size_t *at);
// Unescapes a string into `out` (with a final 0) and gives its length, or -1: no string, too long, or with a 0 in it.
long json_string(struct json value, char *out, size_t capacity);
bool json_is_true(struct json value);
// A whole number from 0 to `max`, or `otherwise`.
unsigned json_number(struct json value, unsigned max, unsigned otherwise);
// Writes `text` with quotes and escapes; gives the length, or -1 when it is too long.
long json_quote(const char *text, char *out, size_t capacity);

// Copies `document` with  "user":"@USER@"  given the value `user`, and, when `home` is not NULL, the string
// "HOME=@HOME@"  made HOME=home. Gives the length, or -1 when it is too long. Only these whole forms are replaced,
// because the same words may be somebody's argument.
long json_put_user(const char *document, size_t length, const char *user, const char *home, char *out, size_t capacity);
