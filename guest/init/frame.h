// Frames of the guest channel (docs/guest-channel.md): finding whole, checked ones in what the host sends, and writing
// those that go to it. No I/O here.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { HEADER_BYTES = 12, MAX_PAYLOAD = 32768, NONCE_BYTES = 16, RESUME_FIXED_BYTES = NONCE_BYTES + 2 };

enum host_frame {
	RESUME = 0x01, START, EXEC, DATA, END, ACK, SIGNAL, RESIZE, SHUTDOWN, STATS, FORGET,
};
enum guest_frame {
	GUEST_HELLO = 0x81, GUEST_STARTED = 0x83, GUEST_DATA, GUEST_END, GUEST_ACK, GUEST_EXIT = 0x88, GUEST_FAILED, GUEST_STATS,
};

struct frame {
	uint8_t type;
	uint8_t fd;
	uint16_t process;
	uint32_t length;
	const uint8_t *payload; // inside the parser: valid until the next call
};

struct parser {
	size_t start, held; // what is not parsed yet: buffer[start] to buffer[held]
	bool hunting;       // lost: only a RESUME with a right check is believed
	uint8_t buffer[2 * (HEADER_BYTES + MAX_PAYLOAD)];
};

// Where to put what is read next, and how much at most (never 0 after frame_next returned false).
uint8_t *frame_room(struct parser *parser, size_t *room);
// `count` bytes were put there.
void frame_fed(struct parser *parser, size_t count);
// The next whole frame with a right check, if there is one.
bool frame_next(struct parser *parser, struct frame *frame);

// Writes a header; the guest's frames carry no check.
void frame_header(uint8_t *at, uint8_t type, uint8_t fd, uint16_t process, uint32_t length);
uint32_t frame_check(const uint8_t *header, const uint8_t *payload, size_t length);

// The guest's processors are little-endian, as the protocol is.
static inline uint16_t get_u16(const uint8_t *at) { uint16_t value; memcpy(&value, at, 2); return value; }
static inline uint32_t get_u32(const uint8_t *at) { uint32_t value; memcpy(&value, at, 4); return value; }
static inline uint64_t get_u64(const uint8_t *at) { uint64_t value; memcpy(&value, at, 8); return value; }
static inline void put_u16(uint8_t *at, uint16_t value) { memcpy(at, &value, 2); }
static inline void put_u32(uint8_t *at, uint32_t value) { memcpy(at, &value, 4); }
static inline void put_u64(uint8_t *at, uint64_t value) { memcpy(at, &value, 8); }
