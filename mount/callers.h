#pragma once
// What proc(5) says of the threads that make calls.

#include <sys/types.h>

#include <string>

#include "base/types.h"

namespace latchkey::mount {

// Field `number` of a thread's stat file, from the third on: behind the command, which may hold
// anything. Empty: the thread has gone.
std::string stat_field(pid_t process, pid_t thread, u32 number);

// The process that a thread belongs to, by the thread's number; 0 if it has gone, or is one of
// another pid namespace (whose number is told as 0).
pid_t process_of(pid_t thread);

// Whether each of its threads has ended or been killed, which no signal handler can prevent.
bool is_ending(pid_t process);

}  // namespace latchkey::mount
