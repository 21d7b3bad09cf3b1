// Whether a command can be executed, told before the runtime tries, in Docker's words and with its exit codes.
#pragma once
#include <stddef.h>

// 0 when it can, else the code to fail with (126 or 127), and `why` says what is wrong.
int command_check(int root, const char *argv0, const char *path, const char *working_dir, char *why, size_t why_capacity);
