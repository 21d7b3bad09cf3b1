// A START or EXEC that is longer than a frame: its parts put together, one request at a time, up to a limit. No I/O here.
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "json.h"

enum { MAX_REQUEST = 1048576 };

// Takes a part of the request that `type` and `process` name. True with the last one (`more` is false): then `whole` is
// the request, until the next call, or has no text when it was too long. Parts of another request drop those before.
bool request_take(uint8_t type, uint16_t process, const uint8_t *bytes, uint32_t count, bool more, struct json *whole);
// Gives the memory back, and with it what has no end yet.
void request_drop(void);
