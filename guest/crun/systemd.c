// Stands in for libsystemd in the guest, where there is no systemd: crun is linked to it, and loading the real one with
// the six libraries that it needs would cost memory and time in every boot. Every call fails as it would without a bus.
#include <errno.h>

#define ABSENT(name, version) \
	int name##_absent(void); \
	int name##_absent(void) { return -ENOSYS; } \
	__asm__(".symver " #name "_absent," #name "@@" version)

ABSENT(sd_notify, "LIBSYSTEMD_209");
ABSENT(sd_journal_send_with_location, "LIBSYSTEMD_209");
ABSENT(sd_bus_call, "LIBSYSTEMD_221");
ABSENT(sd_bus_default_system, "LIBSYSTEMD_221");
ABSENT(sd_bus_default_user, "LIBSYSTEMD_221");
ABSENT(sd_bus_error_free, "LIBSYSTEMD_221");
ABSENT(sd_bus_error_get_errno, "LIBSYSTEMD_221");
ABSENT(sd_bus_message_append, "LIBSYSTEMD_221");
ABSENT(sd_bus_message_append_strv, "LIBSYSTEMD_221");
ABSENT(sd_bus_message_close_container, "LIBSYSTEMD_221");
ABSENT(sd_bus_message_new_method_call, "LIBSYSTEMD_221");
ABSENT(sd_bus_message_open_container, "LIBSYSTEMD_221");
ABSENT(sd_bus_message_read, "LIBSYSTEMD_221");
ABSENT(sd_bus_message_unref, "LIBSYSTEMD_221");
ABSENT(sd_bus_process, "LIBSYSTEMD_221");
ABSENT(sd_bus_unref, "LIBSYSTEMD_221");
ABSENT(sd_bus_wait, "LIBSYSTEMD_221");
ABSENT(sd_bus_match_signal_async, "LIBSYSTEMD_237");
ABSENT(sd_notify_barrier, "LIBSYSTEMD_246");
