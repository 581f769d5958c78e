#pragma once
// The memory of a thread that waits in an ioctl of the mount: some of fscrypt's ioctls say in their
// number another size or direction than they have, so FUSE does not carry their bytes.
//
// Whose memory it is: the kernel tells the thread that made the request, and once a request is in
// the server's hands the kernel lets that thread go, by whatever signal, only with the answer (or
// when the connection is cut, which is root's to do where root serves it). It can neither end nor
// exec until then, and no other process can have its number. So a reader has one more look at
// /proc: before and after, under the same entry of it, the thread must wait in this very ioctl.
//
// A page of that memory may be of a file whose file system never answers, so a call may never
// return. Needs the right to trace the caller (root's, or of the same user where nothing restricts
// it), and a caller of 64 bits.

#include "base/result.h"
#include "base/types.h"
#include "mount/unique_fd.h"

namespace latchkey::mount {

class CallerMemory {
 public:
  // Of `thread` while it waits in ioctl(?, command, argument). unsupported: nobody can say so, or
  // it may not be looked at.
  static Result<CallerMemory> of(u32 thread, u32 command, u64 argument);

  // How many bytes there are: fewer where the memory ends, or may not be read or written. Straight
  // from one memory to the other. unsupported: as above; of() was right, but it is not any more.
  Result<std::size_t> read(u64 address, MutableBytes into) const;
  Result<std::size_t> write(u64 address, Bytes from) const;

 private:
  CallerMemory(u32 thread, u32 command, u64 argument)
      : thread_(thread), command_(command), argument_(argument) {}
  bool waits() const;
  Result<std::size_t> done(long moved, int error) const;

  u32 thread_;
  u32 command_;
  u64 argument_;
  UniqueFd folder_;  // of the thread in /proc: of nobody else, also when the number is
};

}  // namespace latchkey::mount
