#pragma once
// Which processes have a file open, from /proc: exact where the daemon may look (root: everywhere;
// else at its user's own processes), and of this moment.
//
// Descriptors are looked at with AT_STATX_DONT_SYNC, which asks no file system; mappings in the
// text of /proc/PID/maps.

#include <map>
#include <set>
#include <string>
#include <vector>

#include "base/types.h"
#include "volume/types.h"

namespace latchkey::mount {

// By st_ino, then by process: the path under which the process has the file.
using FileUsers = std::map<u64, std::map<u32, std::string>>;
// Of the inodes `wanted` of `device` (st_dev): who has them open or mapped. Not longer than
// `patience_ns`, after which those are known that were found by then: the text of a process's
// mappings waits for its address space, which may take for ever. Such a process is passed over, and
// so it is the next time; its descriptors are looked at. `proc` is /proc (tests).
FileUsers processes_with(u64 device, const std::set<u64>& wanted, u64 patience_ns = 1'000'000'000,
                         const std::string& proc = "/proc");

// The name of a process as ps shows it; empty if there is none.
std::string command_of(u32 pid);
// The process that a thread belongs to; 0 if there is none.
u32 process_of(u32 thread);

// Sets pid and command of each holder, and the path where there is none; `inodes` has the st_ino of
// each. The process that opened a handle is named while it has the file open; else one that has it
// and opened no other handle of it; else any that has it; else the opener, if it lives. Never one
// that has begun after the handle was opened and does not have the file: the opener's number may
// have gone to it.
void name_processes(u64 device, const std::vector<u64>& inodes,
                    std::vector<volume::Holder>& holders);

}  // namespace latchkey::mount
