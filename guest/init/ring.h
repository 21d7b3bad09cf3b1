// A ring of bytes that is addressed by absolute stream offsets, so that what was sent can be sent again until it is
// acknowledged. Holds the bytes from `base` to `end`.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

struct ring {
	uint8_t *bytes;
	uint32_t capacity; // a power of two
	uint64_t base;
	uint64_t end;
};

// False when there is no memory. The pages are only taken when bytes are written to them.
bool ring_open(struct ring *ring, uint32_t capacity);
void ring_close(struct ring *ring);

static inline size_t ring_held(const struct ring *ring) { return (size_t)(ring->end - ring->base); }
static inline size_t ring_room(const struct ring *ring) { return ring->capacity - ring_held(ring); }

// The free space, for readv; returns how many of the two vectors are in use.
int ring_space(const struct ring *ring, struct iovec vectors[2]);
// `count` bytes were written into the free space.
void ring_commit(struct ring *ring, size_t count);
// Appends as many bytes as there is room for, and says how many.
size_t ring_append(struct ring *ring, const uint8_t *bytes, size_t count);
// The bytes from `offset` (base to end) on, for writev; returns how many of the two vectors are in use.
int ring_content(const struct ring *ring, uint64_t offset, struct iovec vectors[2]);
// Copies up to `count` bytes from `offset` (base to end) on, and says how many.
size_t ring_copy(const struct ring *ring, uint64_t offset, uint8_t *bytes, size_t count);
// Forgets what is below `offset`; an offset outside base to end is taken as the nearer of the two.
void ring_forget(struct ring *ring, uint64_t offset);
