// Requests in parts; see request.h.
#include "request.h"

#include <stdlib.h>
#include <string.h>

static struct {
	bool under_way, too_long;
	uint8_t type;
	uint16_t process;
	uint32_t held;
	char *bytes; // MAX_REQUEST of them: the pages are only taken when they are written to
} parts;

void request_drop(void) {
	free(parts.bytes);
	memset(&parts, 0, sizeof parts);
}

bool request_take(uint8_t type, uint16_t process, const uint8_t *bytes, uint32_t count, bool more, struct json *whole) {
	if (!parts.under_way || parts.type != type || parts.process != process) request_drop();
	if (!parts.under_way && !more) { // nearly all of them: one frame
		*whole = (struct json){ (const char *)bytes, count };
		return true;
	}
	if (!parts.bytes && !parts.too_long) parts.bytes = malloc(MAX_REQUEST);
	parts.under_way = true;
	parts.type = type;
	parts.process = process;
	if (!parts.bytes || count > MAX_REQUEST - parts.held) {
		free(parts.bytes);
		parts.bytes = NULL;
		parts.too_long = true;
	} else {
		memcpy(parts.bytes + parts.held, bytes, count);
		parts.held += count;
	}
	if (more) return false;
	*whole = (struct json){ parts.bytes, parts.bytes ? parts.held : 0 };
	parts.under_way = false;
	return true;
}
