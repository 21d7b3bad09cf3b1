// Parsing and writing of frames; see frame.h.
#include "frame.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "integers are copied as they are");

static uint32_t check_table[256];

static void make_check_table(void) {
	for (uint32_t i = 0; i < 256; i++) {
		uint32_t value = i;
		for (int bit = 0; bit < 8; bit++) value = value & 1 ? 0xedb88320u ^ (value >> 1) : value >> 1;
		check_table[i] = value;
	}
}

static uint32_t check_more(uint32_t check, const uint8_t *bytes, size_t count) {
	for (size_t i = 0; i < count; i++) check = check_table[(check ^ bytes[i]) & 0xff] ^ (check >> 8);
	return check;
}

uint32_t frame_check(const uint8_t *header, const uint8_t *payload, size_t length) {
	if (check_table[1] == 0) make_check_table();
	return ~check_more(check_more(~0u, header, 8), payload, length);
}

void frame_header(uint8_t *at, uint8_t type, uint8_t fd, uint16_t process, uint32_t length) {
	at[0] = type;
	at[1] = fd;
	put_u16(at + 2, process);
	put_u32(at + 4, length);
	put_u32(at + 8, 0);
}

uint8_t *frame_room(struct parser *parser, size_t *room) {
	*room = sizeof parser->buffer - parser->held;
	return parser->buffer + parser->held;
}

void frame_fed(struct parser *parser, size_t count) {
	parser->held += count;
}

// What is left moves to the front, so that there is always room for the rest of the frame.
static bool need_more(struct parser *parser) {
	memmove(parser->buffer, parser->buffer + parser->start, parser->held - parser->start);
	parser->held -= parser->start;
	parser->start = 0;
	return false;
}

static bool is_plausible(const struct parser *parser, const uint8_t *header) {
	uint32_t length = get_u32(header + 4);
	if (length > MAX_PAYLOAD) return false;
	if (!parser->hunting) return header[0] >= RESUME && header[0] <= FORGET;
	return header[0] == RESUME && header[1] == 0 && get_u16(header + 2) == 0 && length >= RESUME_FIXED_BYTES;
}

bool frame_next(struct parser *parser, struct frame *frame) {
	for (;;) {
		while (parser->start < parser->held && parser->buffer[parser->start] == 0) parser->start++;
		const uint8_t *at = parser->buffer + parser->start;
		size_t held = parser->held - parser->start;
		if (held < HEADER_BYTES) return need_more(parser);
		if (!is_plausible(parser, at)) {
			parser->hunting = true;
			parser->start++;
			continue;
		}
		uint32_t length = get_u32(at + 4);
		if (held < HEADER_BYTES + length) return need_more(parser);
		if (frame_check(at, at + HEADER_BYTES, length) != get_u32(at + 8)) {
			parser->start += parser->hunting ? 1 : HEADER_BYTES + length;
			continue;
		}
		parser->hunting = false;
		parser->start += HEADER_BYTES + length;
		*frame = (struct frame){ at[0], at[1], get_u16(at + 2), length, at + HEADER_BYTES };
		return true;
	}
}
