// The guest's end of the channel: what the host's frames do, and what is owed to it, written as the port takes it.
// Nothing waits here: while the host is away, what is owed stays owed, and RESUME says from where on.
#pragma once
#include <stdbool.h>

void channel_open(int port);
// Reads and handles what came, at most one buffer full. True when there may be more.
bool channel_read(void);
// Writes what is owed until there is nothing or the port takes no more. True when it may take more at once.
bool channel_write(void);
