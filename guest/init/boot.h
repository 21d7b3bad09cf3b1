// Everything between the kernel and the event loop: mounts, modules, disks, the loopback interface, the port.
#pragma once

// Mounts what every program needs, and loads the bus. Ends the machine when it cannot.
void boot_system(void);
// The channel's port, or -1.
int boot_port(void);
// Mounts image and scratch over one another and gives the folder's descriptor; -1, and `*why`, when it cannot.
int boot_root(const char **why);
void boot_network(void);
_Noreturn void boot_give_up(const char *why);
