#pragma once
// A stretch of one thread's work with secrets: a derivation, a batch of a cipher. While it lasts no
// signal handler runs on the thread: the kernel would put the vector registers, round keys and all,
// into the handler's frame, on the stack or on an alternative one that nobody burns. At its end
// stack and registers are burnt, and only then are signals let in again.
//
// They nest; the outermost one costs two system calls, so there is one for a call or a batch and
// none for a block. It ends in the thread that began it. Every signal is kept out, the C library's
// own ones too; one that the thread's own instructions raise (SIGSEGV, SIGBUS) ends the process
// without its handler, as the kernel does with blocked ones.

#include "base/secret.h"
#include "base/types.h"

namespace latchkey {

inline constinit thread_local u32 secret_work_depth = 0;

// Of the outermost one only.
void block_signals() noexcept;
void restore_signals() noexcept;

inline void begin_secret_work() noexcept {
  if (secret_work_depth++ == 0) block_signals();
}

// Inline, so that no frame of its own lies between what is burnt and its caller's.
inline void end_secret_work() noexcept {
  burn_stack_and_registers();
  if (--secret_work_depth == 0) restore_signals();
}

class SecretWork {
 public:
  SecretWork() noexcept { begin_secret_work(); }
  ~SecretWork() { end_secret_work(); }
  SecretWork(const SecretWork&) = delete;
  SecretWork& operator=(const SecretWork&) = delete;
};

}  // namespace latchkey
