// From the kernel to the event loop; see boot.h.
#define _GNU_SOURCE
#include "boot.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "cgroup.h"
#include "trace.h"

enum { DEVICE_TRIES = 1000, MOMENT_NS = 1000000, VIRTIO_NET = 1, VIRTIO_BLOCK = 2, VIRTIO_CONSOLE = 3, VIRTIO_RNG = 4 };

_Noreturn void boot_give_up(const char *why) {
	char line[256];
	int length = snprintf(line, sizeof line, "<2>init: %s: %s\n", why, strerror(errno));
	int log = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);
	if (log >= 0 && write(log, line, (size_t)length) < 0) close(log); // nowhere else to say it
	reboot(RB_AUTOBOOT);
	_exit(1);
}

static void must_mount(const char *type, const char *where, unsigned long flags, const char *options) {
	if (mount(type, where, type, flags, options) < 0) boot_give_up(where);
}

// The container's runtime pivots its root, which the kernel refuses on the initial root; so the same folder is
// mounted over it first.
static void leave_initial_root(void) {
	if (mount("/", "/mnt", NULL, MS_BIND, NULL) < 0 || chdir("/mnt") < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 ||
	    chroot(".") < 0 || chdir("/") < 0) {
		boot_give_up("root");
	}
}

static bool load(const char *module) {
	char path[64];
	snprintf(path, sizeof path, "/modules/%s.ko", module);
	int file = open(path, O_RDONLY | O_CLOEXEC);
	if (file < 0) return false;
	bool done = syscall(SYS_finit_module, file, "", 0) == 0 || errno == EEXIST;
	TRACE(module);
	close(file);
	return done;
}

static unsigned virtio_types(void) {
	unsigned found = 0;
	DIR *folder = opendir("/sys/bus/virtio/devices");
	for (struct dirent *entry; folder && (entry = readdir(folder));) {
		char path[300], text[16] = "";
		unsigned type;
		snprintf(path, sizeof path, "/sys/bus/virtio/devices/%s/device", entry->d_name);
		int file = open(path, O_RDONLY | O_CLOEXEC);
		if (file < 0) continue;
		if (read(file, text, sizeof text - 1) > 0 && sscanf(text, "0x%x", &type) == 1 && type < 32) found |= 1u << type;
		close(file);
	}
	if (folder) closedir(folder);
	return found;
}

void boot_system(void) {
	leave_initial_root();
	must_mount("devtmpfs", "/dev", MS_NOSUID, NULL);
	for (int fd = open("/dev/null", O_RDWR); fd >= 0 && fd < 2;) fd = dup(fd);
	TRACE("init");
	must_mount("proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	must_mount("sysfs", "/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	int adjust = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
	if (adjust < 0 || write(adjust, "-1000", 5) != 5) boot_give_up("oom_score_adj");
	close(adjust);
	if (!cgroup_open()) boot_give_up("cgroup");
	TRACE("mounted");
	if (!load("virtio_ring") || !load("virtio") || !load("virtio_mmio")) boot_give_up("virtio");
	unsigned types = virtio_types();
	// The console first: its ports come up in the background while the disks are mounted.
	if (types & 1u << VIRTIO_CONSOLE) load("virtio_console");
	if (types & 1u << VIRTIO_BLOCK) load("virtio_blk");
	if (types & 1u << VIRTIO_NET && load("failover") && load("net_failover")) load("virtio_net");
	if (types & 1u << VIRTIO_RNG) load("virtio-rng");
	load("overlay");
	TRACE("modules");
}

// Devices appear a moment after their module is loaded.
static bool wait_a_moment(int tries) {
	const struct timespec moment = { .tv_nsec = MOMENT_NS };
	if (tries >= DEVICE_TRIES) return false;
	nanosleep(&moment, NULL);
	return true;
}

static int open_device(const char *path, int flags) {
	for (int tries = 0;; tries++) {
		int device = open(path, flags | O_CLOEXEC);
		if (device >= 0 || (errno != ENOENT && errno != ENXIO) || !wait_a_moment(tries)) return device;
	}
}

// The machine has one port; its number depends on the order of the devices.
static bool find_port(char path[300]) {
	bool found = false;
	DIR *folder = opendir("/sys/class/virtio-ports");
	for (struct dirent *entry; folder && !found && (entry = readdir(folder));) {
		found = entry->d_name[0] != '.';
		if (found) snprintf(path, 300, "/dev/%s", entry->d_name);
	}
	if (folder) closedir(folder);
	return found;
}

int boot_port(void) {
	char path[300];
	for (int tries = 0; !find_port(path);) {
		if (!wait_a_moment(tries++)) return -1;
	}
	return open_device(path, O_RDWR | O_NONBLOCK);
}

static const char *image_type(void) {
	uint8_t start[1028];
	int disk = open_device("/dev/vda", O_RDONLY);
	ssize_t length = disk < 0 ? -1 : read(disk, start, sizeof start);
	if (disk >= 0) close(disk);
	if (length != sizeof start) return NULL;
	if (memcmp(start, "hsqs", 4) == 0) return "squashfs";
	if (memcmp(start + 1024, "\xe2\xe1\xf5\xe0", 4) == 0) return "erofs";
	return NULL;
}

int boot_root(const char **why) {
	struct stat about;
	const char *type = image_type();
	*why = "the image's disk is not there, or not known";
	if (!type) return -1;
	if (strcmp(type, "erofs") == 0) load("libcrc32c");
	load(type);
	*why = "the image could not be mounted";
	if (mount("/dev/vda", "/run/image", type, MS_RDONLY, NULL) < 0 || stat("/run/image", &about) < 0) return -1;
	TRACE("image");
	*why = "the scratch disk could not be mounted";
	if (mount("/dev/vdb", "/run/scratch", "ext4", MS_NOATIME, "noinit_itable,barrier=0") < 0) return -1;
	TRACE("scratch");
	*why = "image and scratch could not be put together";
	if (mkdir("/run/scratch/upper", 0755) < 0 || mkdir("/run/scratch/work", 0700) < 0) return -1;
	// The root folder's owner and mode are the upper one's: make them the image's.
	if (chown("/run/scratch/upper", about.st_uid, about.st_gid) < 0 || chmod("/run/scratch/upper", about.st_mode & 07777) < 0) return -1;
	// Volatile: nothing of the scratch disk outlives the machine, so nobody has to wait for it to be written.
	if (mount("overlay", "/run/workload/rootfs", "overlay", 0,
	          "lowerdir=/run/image,upperdir=/run/scratch/upper,workdir=/run/scratch/work,volatile") < 0) {
		return -1;
	}
	TRACE("overlay");
	return open("/run/workload/rootfs", O_PATH | O_DIRECTORY | O_CLOEXEC);
}

void boot_network(void) {
	struct ifreq request = { .ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING };
	int control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (control < 0) return;
	ioctl(control, SIOCSIFFLAGS, &request);
	close(control);
}
