// Tests of the parts of init that touch nothing but memory and a folder: built on the host with sanitizers, and run by
// guest.test.ts.    unit EMPTY_FOLDER FUZZ_SECONDS [SEED]
#define _GNU_SOURCE
#include <assert.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "../init/command.h"
#include "../init/frame.h"
#include "../init/inroot.h"
#include "../init/json.h"
#include "../init/request.h"
#include "../init/ring.h"
#include "../init/user.h"

#define CHECK(what) \
	do { \
		if (!(what)) { \
			fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #what); \
			exit(1); \
		} \
	} while (0)

static uint64_t seed;

static uint32_t any(uint32_t below) {
	seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
	return (uint32_t)(seed >> 11) % below;
}

static void test_ring(void) {
	struct ring ring;
	uint8_t in[300], out[300];
	uint64_t written = 0;
	CHECK(ring_open(&ring, 4096));
	for (int round = 0; round < 20000; round++) {
		size_t count = any(sizeof in), room = ring_room(&ring);
		for (size_t i = 0; i < count; i++) in[i] = (uint8_t)((written + i) * 31);
		size_t taken = ring_append(&ring, in, count);
		CHECK(taken == (count < room ? count : room));
		written += taken;
		CHECK(ring.end == written && ring_held(&ring) <= 4096);
		uint64_t from = ring.base + any((uint32_t)ring_held(&ring) + 1);
		size_t copied = ring_copy(&ring, from, out, sizeof out);
		CHECK(copied == (ring.end - from < sizeof out ? ring.end - from : sizeof out));
		for (size_t i = 0; i < copied; i++) CHECK(out[i] == (uint8_t)((from + i) * 31));
		if (any(3) == 0) ring_forget(&ring, from);
	}
	ring_forget(&ring, 0);
	ring_forget(&ring, UINT64_MAX);
	CHECK(ring.base == ring.end);
	ring_close(&ring);
}

static size_t make_frame(uint8_t *at, uint8_t type, uint16_t process, const uint8_t *payload, uint32_t length) {
	frame_header(at, type, 0, process, length);
	memmove(at + HEADER_BYTES, payload, length);
	put_u32(at + 8, frame_check(at, at + HEADER_BYTES, length));
	return HEADER_BYTES + length;
}

static struct parser parser;

// Feeds in pieces of any size; counts the frames that come out, and keeps the last one's type and length.
static int feed(const uint8_t *bytes, size_t count, struct frame *last) {
	int frames = 0;
	struct frame frame;
	while (count > 0) {
		size_t room;
		uint8_t *at = frame_room(&parser, &room);
		CHECK(room > 0);
		size_t part = 1 + any((uint32_t)(count < 9000 ? count : 9000));
		if (part > room) part = room;
		memcpy(at, bytes, part);
		frame_fed(&parser, part);
		bytes += part;
		count -= part;
		while (frame_next(&parser, &frame)) {
			CHECK(frame.length <= MAX_PAYLOAD);
			volatile uint8_t sum = 0;
			for (uint32_t i = 0; i < frame.length; i++) sum = (uint8_t)(sum + frame.payload[i]);
			frames++;
			*last = frame;
		}
	}
	return frames;
}

static void test_frames(void) {
	static uint8_t bytes[400000], payload[MAX_PAYLOAD];
	struct frame last = { 0 };
	const uint8_t known[] = "123456789";
	CHECK(frame_check(known, known + 8, 1) == 0xcbf43926);
	for (size_t i = 0; i < sizeof payload; i++) payload[i] = (uint8_t)any(256);
	size_t length = 0;
	length += make_frame(bytes + length, SIGNAL, 3, payload, 4);
	length += 5; // zeros between frames
	length += make_frame(bytes + length, DATA, 7, payload, MAX_PAYLOAD);
	length += make_frame(bytes + length, STATS, 0, payload, 0);
	CHECK(feed(bytes, length, &last) == 3 && last.type == STATS);
	// A wrong check loses that frame only.
	memset(bytes, 0, sizeof bytes);
	length = make_frame(bytes, DATA, 1, payload, 100);
	bytes[50] ^= 1;
	length += make_frame(bytes + length, EXEC, 2, payload, 10);
	CHECK(feed(bytes, length, &last) == 1 && last.type == EXEC && last.process == 2);
	// An unknown type, or a length too great, loses everything up to the next RESUME.
	for (int i = 0; i < 2; i++) {
		memset(bytes, 0, sizeof bytes);
		frame_header(bytes, i ? DATA : 0x0c, 0, 0, i ? MAX_PAYLOAD + 1 : 0);
		length = HEADER_BYTES;
		length += make_frame(bytes + length, STATS, 0, payload, 0);
		CHECK(feed(bytes, length, &last) == 0);
		length = make_frame(bytes, RESUME, 0, payload, 18);
		length += make_frame(bytes + length, STATS, 0, payload, 0);
		CHECK(feed(bytes, length, &last) == 2 && last.type == STATS);
	}
	// A frame cut anywhere is completed by the zeros that a new connection begins with.
	for (size_t cut = 0; cut < HEADER_BYTES + 1000; cut += 1 + any(40)) {
		memset(bytes, 0, sizeof bytes);
		make_frame(bytes, DATA, 1, payload, 1000);
		memset(bytes + cut, 0, HEADER_BYTES + MAX_PAYLOAD);
		length = cut + HEADER_BYTES + MAX_PAYLOAD;
		length += make_frame(bytes + length, RESUME, 0, payload, 18);
		CHECK(feed(bytes, length, &last) == 1 && last.type == RESUME && last.length == 18);
	}
}

// Random bytes, and right frames with a byte changed: nothing but whole frames may come out, and after it all a RESUME.
static void fuzz_frames(double seconds) {
	static uint8_t bytes[3 * MAX_PAYLOAD], payload[MAX_PAYLOAD];
	static uint8_t zeros[HEADER_BYTES + MAX_PAYLOAD];
	struct frame last = { 0 };
	time_t until = time(NULL) + (time_t)seconds;
	for (unsigned long round = 0; time(NULL) < until; round++) {
		size_t length = 0;
		while (length < MAX_PAYLOAD) {
			uint32_t part = any(600);
			for (uint32_t i = 0; i < part; i++) payload[i] = (uint8_t)(any(4) ? any(13) : any(256));
			size_t frame = make_frame(bytes + length, (uint8_t)any(16), (uint16_t)any(4), payload, part);
			if (any(3) == 0) bytes[length + any((uint32_t)frame)] ^= (uint8_t)(1 + any(255));
			length += any(4) ? frame : any((uint32_t)frame);
		}
		feed(bytes, length, &last);
		feed(zeros, sizeof zeros, &last);
		feed(bytes, make_frame(bytes, RESUME, 0, payload, 18), &last);
		// While it hunts, an older plausible header may still hold it: the host says RESUME again.
		if (last.type != RESUME) {
			feed(zeros, sizeof zeros, &last);
			feed(bytes, make_frame(bytes, RESUME, 0, payload, 18), &last);
		}
		CHECK(last.type == RESUME);
		last.type = 0;
	}
}

// Parts of any size make the same request, up to the limit and no further; another request, or a drop, begins anew.
static void test_requests(void) {
	static uint8_t text[MAX_REQUEST + 1];
	struct json whole;
	for (size_t i = 0; i < sizeof text; i++) text[i] = (uint8_t)any(256);
	CHECK(request_take(START, 0, text, 7, false, &whole) && whole.text == (const char *)text && whole.length == 7);
	for (int round = 0; round < 60; round++) {
		uint32_t length = round < 2 ? MAX_REQUEST + (uint32_t)round : any(MAX_REQUEST + 2), at = 0;
		while (length - at > MAX_PAYLOAD || (at < length && any(3))) {
			uint32_t part = 1 + any(length - at < MAX_PAYLOAD ? length - at : MAX_PAYLOAD);
			CHECK(!request_take(EXEC, 9, text + at, part, true, &whole));
			at += part;
		}
		if (any(4) == 0) {
			if (any(2)) request_drop();
			CHECK(request_take(any(2) ? START : EXEC, 8, text, 10, false, &whole));
			CHECK(whole.length == 10 && memcmp(whole.text, text, 10) == 0);
		} else {
			CHECK(request_take(EXEC, 9, text + at, length - at, false, &whole));
			CHECK(length > MAX_REQUEST ? !whole.text : whole.length == length && memcmp(whole.text, text, length) == 0);
		}
		if (any(2)) request_drop();
	}
	request_drop();
	request_drop();
}

#define TEXT(literal) ((struct json){ (literal), strlen(literal) })

static void test_json(void) {
	char out[256];
	struct json object = TEXT("{\"a\": [1,{\"b\":2}], \"b\" : \"x\\n\\u00e9\\ud83d\\ude00\\\"\",\"c\":true,\"rows\":24, \"list\":[\"p\",\"q\"]}");
	CHECK(json_string(json_field(object, "b"), out, sizeof out) == 9 && strcmp(out, "x\n\xc3\xa9\xf0\x9f\x98\x80\"") == 0);
	CHECK(json_is_true(json_field(object, "c")) && !json_is_true(json_field(object, "d")));
	CHECK(json_number(json_field(object, "rows"), 65535, 0) == 24 && json_number(json_field(object, "rows"), 23, 7) == 7);
	size_t at = 0;
	CHECK(json_string(json_element(json_field(object, "list"), &at), out, sizeof out) == 1 && out[0] == 'p');
	CHECK(json_string(json_element(json_field(object, "list"), &at), out, sizeof out) == 1 && out[0] == 'q');
	CHECK(!json_element(json_field(object, "list"), &at).text);
	at = 0;
	CHECK(!json_element(TEXT("[]"), &at).text);
	CHECK(json_string(TEXT("\"a\\u0000b\""), out, sizeof out) < 0);
	CHECK(json_string(TEXT("\"\\ud800x\""), out, sizeof out) == 4);
	CHECK(json_string(TEXT("\"12345678\""), out, 8) < 0);
	CHECK(json_quote("a\"\\\n", out, sizeof out) == 13 && strcmp(out, "\"a\\\"\\\\\\u000a\"") == 0);
	const char *document = "{\"user\":\"@USER@\",\"env\":[\"HOME=@HOME@\"],\"args\":[\"@USER@\",\"\\\"user\\\":\\\"@USER@\\\"\",\"@HOME@\"]}";
	CHECK(json_put_user(document, strlen(document), "{\"uid\":1}", "/h\"", out, sizeof out) > 0);
	CHECK(strcmp(out, "{\"user\":{\"uid\":1},\"env\":[\"HOME=/h\\\"\"],\"args\":[\"@USER@\",\"\\\"user\\\":\\\"@USER@\\\"\",\"@HOME@\"]}") == 0);
	CHECK(json_put_user(document, strlen(document), "{}", NULL, out, sizeof out) > 0 && strstr(out, "HOME=@HOME@"));
	CHECK(json_put_user(document, strlen(document), "{}", NULL, out, 40) < 0);
	// Any bytes at all: answers may be anything, reads must stay inside.
	for (int round = 0; round < 200000; round++) {
		static const char alphabet[] = "{}[]\",:\\u0d8 tae1";
		size_t length = any(40);
		char *text = malloc(length + 1);
		for (size_t i = 0; i < length; i++) text[i] = alphabet[any(sizeof alphabet - 1)];
		struct json any_object = { text, length };
		json_string(json_field(any_object, "a"), out, 1 + any(sizeof out - 1));
		json_string(any_object, out, sizeof out);
		at = 0;
		for (int i = 0; i < 50 && json_element(any_object, &at).text; i++) {
		}
		free(text);
	}
}

static void test_users(void) {
	const char *passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nalice:x:1000:1001:A:/home/alice:/bin/sh\n1234:x:77:78::/n:/\nnohome:x:5:5:::\n";
	const char *group = "root:x:0:\nwheel:x:10:root,alice\nstaff:x:1001:\nmore:x:11:bob,alice,\nbad:x:y:alice\n";
	struct user user;
	char why[200], json[300];
#define FIND(wanted) user_find(wanted, passwd, strlen(passwd), group, strlen(group), &user, why, sizeof why)
	CHECK(FIND("") && user.uid == 0 && user.gid == 0 && strcmp(user.home, "/root") == 0 && user.group_count == 2);
	CHECK(FIND("alice") && user.uid == 1000 && user.gid == 1001 && strcmp(user.home, "/home/alice") == 0);
	CHECK(user.group_count == 3 && user.groups[0] == 1001 && user.groups[1] == 10 && user.groups[2] == 11);
	CHECK(user_to_json(&user, json, sizeof json) > 0 && strcmp(json, "{\"uid\":1000,\"gid\":1001,\"additionalGids\":[1001,10,11]}") == 0);
	CHECK(user_to_json(&user, json, 30) < 0);
	CHECK(FIND("1000") && user.gid == 1001 && user.group_count == 3);
	CHECK(FIND("1234") && user.uid == 77);
	CHECK(FIND("4242") && user.uid == 4242 && user.gid == 0 && strcmp(user.home, "/") == 0);
	CHECK(FIND("nohome") && strcmp(user.home, "/") == 0);
	CHECK(FIND("alice:wheel") && user.gid == 10 && user.group_count == 1);
	CHECK(FIND("alice:99") && user.gid == 99);
	CHECK(FIND("7:wheel") && user.uid == 7 && user.gid == 10);
	CHECK(!FIND("bob") && strstr(why, "unable to find user bob"));
	CHECK(!FIND("alice:nope") && strstr(why, "unable to find group nope"));
	CHECK(!FIND("4294967296") && !FIND("2147483648") && !FIND("-1"));
	CHECK(user_find("5", NULL, 0, NULL, 0, &user, why, sizeof why) && user.uid == 5);
}

static void put_file(int root, const char *path, const char *text, mode_t mode) {
	int file = openat(root, path, O_WRONLY | O_CREAT | O_TRUNC, mode);
	CHECK(file >= 0 && write(file, text, strlen(text)) == (ssize_t)strlen(text));
	fchmod(file, mode);
	close(file);
}

static void test_commands(int root) {
	char why[300];
	CHECK(mkdirat(root, "bin", 0755) == 0 && mkdirat(root, "w", 0755) == 0 && mkdirat(root, "bin/folder", 0755) == 0);
	put_file(root, "bin/tool", "x", 0755);
	put_file(root, "bin/plain", "x", 0644);
	put_file(root, "w/script", "#! /bin/tool -x\n", 0755);
	put_file(root, "w/orphan", "#!/no/such/sh\n", 0755);
	put_file(root, "w/recursive", "#!/w/recursive\n", 0755);
	CHECK(symlinkat("/bin/tool", root, "w/link") == 0 && symlinkat("../../../../bin/tool", root, "w/dots") == 0);
	CHECK(symlinkat("loop", root, "w/loop") == 0);
#define RUN(name) command_check(root, name, "/none:/bin::/w", "/w", why, sizeof why)
	CHECK(RUN("tool") == 0 && RUN("/bin/tool") == 0 && RUN("./script") == 0 && RUN("script") == 0);
	CHECK(RUN("/w/link") == 0 && RUN("dots") == 0 && RUN("../bin/tool") == 0 && RUN("../../../bin/tool") == 0);
	CHECK(RUN("foo") == 127 && strcmp(why, "exec: \"foo\": executable file not found in $PATH") == 0);
	CHECK(RUN("plain") == 127 && RUN("folder") == 127 && RUN("") == 127);
	CHECK(RUN("/bin/plain") == 126 && strstr(why, "permission denied") && RUN("/bin/folder") == 126 && RUN("/w/loop") == 126);
	CHECK(RUN("/etc/none") == 127 && RUN("/bin/tool/x") == 127);
	CHECK(RUN("orphan") == 127 && strstr(why, "/no/such/sh") && RUN("recursive") == 0);
}

static void test_folders(int root) {
	struct stat about;
	CHECK(inroot_make_folder(root, "/") && inroot_make_folder(root, "/a/b//c/") && inroot_make_folder(root, "/a/b/c"));
	CHECK(fstatat(root, "a/b/c", &about, 0) == 0 && S_ISDIR(about.st_mode));
	CHECK(symlinkat("/a/b", root, "short") == 0 && inroot_make_folder(root, "/short/d"));
	CHECK(fstatat(root, "a/b/d", &about, 0) == 0);
	CHECK(symlinkat("../../../../../../tmp", root, "out") == 0 && mkdirat(root, "tmp", 0755) == 0);
	CHECK(inroot_make_folder(root, "/out/inside") && fstatat(root, "tmp/inside", &about, 0) == 0);
	CHECK(inroot_make_folder(root, "/a/../e") && fstatat(root, "e", &about, 0) == 0);
	put_file(root, "file", "one\ntwo\nthr", 0644);
	CHECK(!inroot_make_folder(root, "/file/x") && !inroot_make_folder(root, ""));
	char text[64];
	CHECK(inroot_read(root, "/file", text, 64) == 11 && inroot_read(root, "/file", text, 9) == 8 && inroot_read(root, "/a", text, 64) < 0);
	CHECK(mkfifoat(root, "fifo", 0644) == 0 && inroot_read(root, "/fifo", text, 64) < 0);
}

int main(int count, char **arguments) {
	CHECK(count >= 3);
	seed = count > 3 ? strtoull(arguments[3], NULL, 10) : (uint64_t)time(NULL) * 2654435761u + (uint64_t)getpid();
	fprintf(stderr, "seed %llu\n", (unsigned long long)seed);
	int root = open(arguments[1], O_PATH | O_DIRECTORY);
	CHECK(root >= 0);
	test_ring();
	test_frames();
	test_requests();
	test_json();
	test_users();
	test_commands(root);
	test_folders(root);
	fuzz_frames(atof(arguments[2]));
	return 0;
}
