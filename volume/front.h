#pragma once
// What stands between programs and the volume and keeps pages of its own: the kernel, under a
// mount. A removal of a key has to reach those pages too, so it asks for them.
//
// A front's calls: reads and writes with IoFlags::wait false, and with `written_back` what it
// pushes down of its dirty pages. Nobody writes through the same volume with waiting calls, which
// would keep a file's pages from being written back while they wait.
//
// While a removal that leaves nothing prepares, reads that do not wait are refused (suspend:
// would_wait), so that no page comes back that the front has dropped. One that was let in before
// may still be answered: dropping its page waits for that, as the kernel does for a locked page.
//
// Thread-safe on either side. No lock of the volume is held where it calls its front.

#include "crypto/ids.h"
#include "volume/types.h"

namespace latchkey::volume {

class Front {
 public:
  Front() = default;
  Front(const Front&) = delete;
  Front& operator=(const Front&) = delete;
  virtual ~Front() = default;

  enum class Which : u8 {
    closed,  // of the key's inodes, those that nobody has open
    all,
  };
  // The front's pages of these inodes are written back (by write() with written_back, from other
  // threads, before this returns) and dropped. Of how many inodes it could not drop all: 0, unless
  // something is wrong. By any thread that removes a key, also one of the volume's own, and never
  // from inside of a front's call.
  virtual u64 drop_pages(const crypto::KeyId& key, Which which) = 0;
  // The key came back, its suspension ended, a gate that was held opened or stopped, a removal
  // ended: what got would_wait is to be tried again. It may come before the call that would wait
  // has answered so: who keeps calls for later looks at a count of these before he makes them.
  virtual void try_again(const crypto::KeyId& key) = 0;
};

}  // namespace latchkey::volume
