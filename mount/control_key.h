#pragma once
// A key on its way from a client to the daemon: a descriptor of memory that only the two have, and
// never bytes in a message, so no socket buffer of the kernel's holds it.
//
// That is a memfd_secret, which both map and either can wipe for both; or, where the kernel has
// none (or the client's arena was forced into locked pages), a memfd of which the client holds the
// only writable mapping and whose seals keep its size and keep everybody else from writing.
// Nothing else is touched: a page fault or a read in a file of the client's choice could wait for
// ever, or end in SIGBUS.

#include "base/result.h"
#include "base/secret.h"
#include "base/types.h"
#include "mount/unique_fd.h"

namespace latchkey::mount {

// The client's end. Its destructor wipes what the daemon has not.
class KeyDescriptor {
 public:
  // A copy of `secret`. no_memory: the lock limit, or memory.
  static Result<KeyDescriptor> create(const SecretBytes& secret);
  KeyDescriptor(KeyDescriptor&& other) noexcept;
  KeyDescriptor& operator=(KeyDescriptor&&) = delete;
  ~KeyDescriptor();

  int fd() const { return fd_.get(); }
  u32 size() const { return size_; }
  bool is_secret_memory() const { return secret_memory_; }
  Bytes bytes() const { return {data_, size_}; }
  void wipe();  // for every descriptor and mapping of it

 private:
  KeyDescriptor() = default;
  Result<void> map(const SecretBytes& secret);

  UniqueFd fd_;
  std::byte* data_ = nullptr;
  u32 size_ = 0;
  bool secret_memory_ = false;
};

// The daemon's end. `recognised` false: closing the descriptor could wait for whoever it belongs
// to, so another thread does that.
struct TakenKey {
  Result<SecretBytes> secret;
  bool recognised = false;
};
// Takes `size` bytes into the arena and wipes them where they were, where that can be. Never waits.
// invalid: it is no such descriptor, or of another size. no_memory.
TakenKey take_key(int fd, u32 size);

}  // namespace latchkey::mount
