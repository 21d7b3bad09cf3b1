// Rings of bytes by absolute offset; see ring.h.
#include "ring.h"

#include <string.h>
#include <sys/mman.h>

bool ring_open(struct ring *ring, uint32_t capacity) {
	void *bytes = mmap(NULL, capacity, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (bytes == MAP_FAILED) return false;
	*ring = (struct ring){ .bytes = bytes, .capacity = capacity };
	return true;
}

void ring_close(struct ring *ring) {
	if (ring->bytes) munmap(ring->bytes, ring->capacity);
	ring->bytes = NULL;
}

static int vectors_at(const struct ring *ring, uint64_t offset, size_t count, struct iovec vectors[2]) {
	if (count == 0) return 0;
	size_t at = (size_t)(offset & (ring->capacity - 1));
	size_t first = ring->capacity - at < count ? ring->capacity - at : count;
	vectors[0] = (struct iovec){ ring->bytes + at, first };
	if (first == count) return 1;
	vectors[1] = (struct iovec){ ring->bytes, count - first };
	return 2;
}

int ring_space(const struct ring *ring, struct iovec vectors[2]) {
	return vectors_at(ring, ring->end, ring_room(ring), vectors);
}

void ring_commit(struct ring *ring, size_t count) {
	ring->end += count;
}

size_t ring_append(struct ring *ring, const uint8_t *bytes, size_t count) {
	struct iovec vectors[2];
	size_t done = 0;
	int used = ring_space(ring, vectors);
	for (int i = 0; i < used && done < count; i++) {
		size_t part = vectors[i].iov_len < count - done ? vectors[i].iov_len : count - done;
		memcpy(vectors[i].iov_base, bytes + done, part);
		done += part;
	}
	ring->end += done;
	return done;
}

int ring_content(const struct ring *ring, uint64_t offset, struct iovec vectors[2]) {
	return vectors_at(ring, offset, (size_t)(ring->end - offset), vectors);
}

size_t ring_copy(const struct ring *ring, uint64_t offset, uint8_t *bytes, size_t count) {
	struct iovec vectors[2];
	size_t done = 0;
	int used = ring_content(ring, offset, vectors);
	for (int i = 0; i < used && done < count; i++) {
		size_t part = vectors[i].iov_len < count - done ? vectors[i].iov_len : count - done;
		memcpy(bytes + done, vectors[i].iov_base, part);
		done += part;
	}
	return done;
}

void ring_forget(struct ring *ring, uint64_t offset) {
	if (offset > ring->end) offset = ring->end;
	if (offset > ring->base) ring->base = offset;
}
