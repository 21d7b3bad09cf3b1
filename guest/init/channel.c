// Frames in, frames out; see channel.h.
#include "channel.h"

#include <errno.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cgroup.h"
#include "container.h"
#include "frame.h"
#include "process.h"
#include "request.h"

enum {
	VERSION = 1,
	WRITE_BYTES = 32768,  // the port takes this much at once
	MAX_CHUNK = 16384,    // of one stream, before the others have their turn
	HELLO_ENTRY_BYTES = 35,
	RESUME_ENTRY_BYTES = 34,
	MAX_REFUSED = 16,
};

static int port;
static struct parser parser;
static bool resumed;
static uint8_t nonce[NONCE_BYTES];
static bool hello_due, stats_due;
static uint16_t refused[MAX_REFUSED]; // execs that there was no slot for
static unsigned refused_count;
static unsigned turn; // the process that is served first next time

static struct {
	size_t start, held;
	uint8_t bytes[WRITE_BYTES];
} out;

void channel_open(int fd) {
	port = fd;
}

// A frame's payload to fill in, or NULL when there is no room for it in this write.
static uint8_t *put_frame(uint8_t type, uint8_t fd, uint16_t process, uint32_t length) {
	if (sizeof out.bytes - out.held < HEADER_BYTES + length) return NULL;
	uint8_t *at = out.bytes + out.held;
	frame_header(at, type, fd, process, length);
	out.held += HEADER_BYTES + length;
	return at + HEADER_BYTES;
}

static bool put_hello(void) {
	unsigned count = 0;
	for (int i = 0; i <= MAX_PROCESSES; i++) count += processes[i].used && !processes[i].forgotten;
	bool none = !process_find(0);
	count += none;
	uint8_t *at = put_frame(GUEST_HELLO, 0, 0, NONCE_BYTES + 4 + count * HELLO_ENTRY_BYTES);
	if (!at) return false;
	memcpy(at, nonce, NONCE_BYTES);
	put_u16(at + NONCE_BYTES, VERSION);
	put_u16(at + NONCE_BYTES + 2, (uint16_t)count);
	at += NONCE_BYTES + 4;
	if (none) {
		memset(at, 0, HELLO_ENTRY_BYTES);
		at += HELLO_ENTRY_BYTES;
	}
	for (int i = 0; i <= MAX_PROCESSES; i++) {
		const struct process *process = &processes[i];
		if (!process->used || process->forgotten) continue;
		put_u16(at, process->id);
		at[2] = (uint8_t)process->state;
		put_u64(at + 3, input_received(&process->input));
		put_u64(at + 11, input_limit(&process->input));
		put_u64(at + 19, process->outputs[0].ring.base);
		put_u64(at + 27, process->outputs[1].ring.base);
		at += HELLO_ENTRY_BYTES;
	}
	return true;
}

static bool put_stats(void) {
	struct cgroup_stats stats;
	uint8_t *at = put_frame(GUEST_STATS, 0, 0, 40);
	if (!at) return false;
	cgroup_stats(&stats);
	put_u64(at, stats.memory);
	put_u64(at + 8, stats.memory_peak);
	put_u64(at + 16, stats.cpu_micros);
	put_u64(at + 24, stats.processes);
	put_u64(at + 32, stats.oom_kills);
	return true;
}

static bool put_failed(uint16_t id, uint8_t code, const char *text) {
	uint32_t length = (uint32_t)strlen(text);
	uint8_t *at = put_frame(GUEST_FAILED, 0, id, 1 + length);
	if (!at) return false;
	at[0] = code;
	memcpy(at + 1, text, length);
	return true;
}

// Output, as far as the host allows and this write has room. Makes at most one frame.
static void put_output(struct process *process, int which) {
	struct output *output = &process->outputs[which];
	uint64_t until = output->ring.end < output->limit ? output->ring.end : output->limit;
	size_t room = sizeof out.bytes - out.held;
	if (until > output->sent && room > HEADER_BYTES + 8) {
		size_t count = (size_t)(until - output->sent);
		if (count > room - HEADER_BYTES - 8) count = room - HEADER_BYTES - 8;
		if (count > MAX_CHUNK) count = MAX_CHUNK;
		uint8_t *at = put_frame(GUEST_DATA, (uint8_t)(which + 1), process->id, (uint32_t)(8 + count));
		put_u64(at, output->sent);
		ring_copy(&output->ring, output->sent, at + 8, count);
		output->sent += count;
	}
	if (output->ended && !output->end_sent && output->sent == output->ring.end) {
		uint8_t *at = put_frame(GUEST_END, (uint8_t)(which + 1), process->id, 8);
		if (!at) return;
		put_u64(at, output->ring.end);
		output->end_sent = true;
	}
}

static void put_outcome(struct process *process) {
	if (process->failed) {
		if (put_failed(process->id, process->code, process->text)) process->outcome_due = false;
		return;
	}
	if (!process->outputs[0].end_sent || !process->outputs[1].end_sent) return;
	uint8_t *at = put_frame(GUEST_EXIT, 0, process->id, 3);
	if (!at) return;
	bool signalled = WIFSIGNALED(process->status);
	at[0] = signalled;
	at[1] = (uint8_t)(signalled ? WTERMSIG(process->status) : WEXITSTATUS(process->status));
	at[2] = process->oom;
	process->outcome_due = false;
}

static void put_process(struct process *process) {
	if (process->started_due && put_frame(GUEST_STARTED, 0, process->id, 0)) process->started_due = false;
	if (process->started_due) return; // nothing of a process before its STARTED
	if (process->input.ack_due) {
		uint8_t *at = put_frame(GUEST_ACK, 0, process->id, 16);
		if (at) {
			put_u64(at, input_received(&process->input));
			put_u64(at + 8, input_limit(&process->input));
			process->input.ack_due = false;
		}
	}
	if (!process->failed) {
		put_output(process, 0);
		put_output(process, 1);
	}
	if (process->outcome_due) put_outcome(process);
}

// Fills one write with what is owed, each process in its turn.
static void fill(void) {
	size_t before;
	if (hello_due && put_hello()) hello_due = false;
	if (stats_due && put_stats()) stats_due = false;
	while (refused_count > 0 && put_failed(refused[refused_count - 1], 125, "too many processes at once")) refused_count--;
	do {
		before = out.held;
		for (unsigned i = 0; i <= MAX_PROCESSES; i++) {
			struct process *process = &processes[(turn + i) % (MAX_PROCESSES + 1)];
			if (process->used && !process->forgotten) put_process(process);
		}
		turn = (turn + 1) % (MAX_PROCESSES + 1);
	} while (out.held > before && out.held < sizeof out.bytes / 2);
}

bool channel_write(void) {
	if (!resumed) return false;
	if (out.start == out.held) {
		out.start = out.held = 0;
		fill();
		if (out.held == 0) return false;
	}
	ssize_t count = write(port, out.bytes + out.start, out.held - out.start);
	if (count > 0) out.start += (size_t)count;
	return count > 0; // EAGAIN: the port is full, or the host is away; the port's next event says when to go on
}

// Offsets and limits that the host has; what is above them is sent again.
static void resume_process(struct process *process, const uint8_t *entry) {
	for (int which = 0; which < 2; which++) {
		struct output *output = &process->outputs[which];
		if (entry) {
			output->limit = 0;
			output_acknowledge(process, which, get_u64(entry + 16 * which), get_u64(entry + 16 * which + 8));
		}
		output->sent = output->ring.base;
		output->end_sent = false;
	}
	process->outcome_due = process->state == ENDED;
	process->started_due = false; // HELLO says so
	process->input.ack_due = false;
}

static void resume(const struct frame *frame) {
	uint16_t count = get_u16(frame->payload + NONCE_BYTES);
	if (frame->length < RESUME_FIXED_BYTES + (uint32_t)count * RESUME_ENTRY_BYTES) return;
	if (resumed && memcmp(nonce, frame->payload, NONCE_BYTES) == 0) return; // said twice: HELLO is under way
	memcpy(nonce, frame->payload, NONCE_BYTES);
	resumed = hello_due = true;
	stats_due = false;
	refused_count = 0;
	request_drop(); // the host says it again, as a whole
	out.start = out.held = 0;
	for (int i = 0; i <= MAX_PROCESSES; i++) {
		struct process *process = &processes[i];
		if (!process->used || process->forgotten) continue;
		const uint8_t *entry = NULL;
		for (uint16_t k = 0; k < count; k++) {
			const uint8_t *at = frame->payload + RESUME_FIXED_BYTES + k * RESUME_ENTRY_BYTES;
			if (get_u16(at) == process->id) entry = at + 2;
		}
		if (!entry && process->id != 0) process_forget(process);
		else resume_process(process, entry);
	}
}

// START and EXEC, when all of their parts have come.
static void request(const struct frame *frame) {
	struct json whole;
	if ((frame->type == START) != (frame->process == 0)) return;
	if (!request_take(frame->type, frame->process, frame->payload, frame->length, frame->fd == 1, &whole)) return;
	if (!process_find(frame->process)) {
		bool has_slot = frame->type == START ? container_start(whole) : container_exec(frame->process, whole);
		if (!has_slot && refused_count < MAX_REFUSED) refused[refused_count++] = frame->process;
	}
	request_drop();
}

static void shutdown_guest(void) {
	cgroup_kill();
	reboot(RB_AUTOBOOT);
}

static void handle(const struct frame *frame) {
	const uint8_t *payload = frame->payload;
	uint32_t length = frame->length;
	if (frame->type == RESUME) {
		if (length >= RESUME_FIXED_BYTES) resume(frame);
		return;
	}
	if (frame->type == START || frame->type == EXEC) return request(frame);
	if (frame->type == STATS) stats_due = true;
	if (frame->type == SHUTDOWN) shutdown_guest();
	struct process *process = process_find(frame->process);
	if (!process) return;
	switch (frame->type) {
	case DATA:
		if (length >= 8) input_receive(process, get_u64(payload), payload + 8, length - 8);
		break;
	case END:
		if (length == 8) input_end(process, get_u64(payload));
		break;
	case ACK:
		if (length == 16 && (frame->fd == 1 || frame->fd == 2)) {
			output_acknowledge(process, frame->fd - 1, get_u64(payload), get_u64(payload + 8));
		}
		break;
	case SIGNAL:
		if (length == 4) process_signal(process, get_u32(payload));
		break;
	case RESIZE:
		if (length == 4) process_resize(process, get_u16(payload), get_u16(payload + 2));
		break;
	case FORGET:
		if (process->id != 0) process_forget(process);
		break;
	default:
		break;
	}
}

bool channel_read(void) {
	size_t room;
	struct frame frame;
	uint8_t *at = frame_room(&parser, &room);
	ssize_t count = read(port, at, room);
	if (count < 0 && errno == EINTR) return true;
	if (count <= 0) return false; // nothing there, or the host is away
	frame_fed(&parser, (size_t)count);
	while (frame_next(&parser, &frame)) handle(&frame);
	return true;
}
