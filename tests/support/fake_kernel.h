#pragma once
// A kernel in front of a volume, as a mount is: a page cache of a few files, stores into mapped
// pages that the volume hears of only when they are written back, and writes that go through. It
// knows the newest value of each page that was acknowledged to somebody, and which pages it could
// not write back.
//
// A page is locked where the kernel's is: while it is read in, written and dropped. Thread-safe.
// Lock: mutex_, never held across a call of the volume.

#include <array>
#include <functional>
#include <map>
#include <optional>
#include <vector>

#include "base/mutex.h"
#include "volume/front.h"
#include "volume/volume.h"

namespace latchkey::tests {

class FakeKernel final : public volume::Front {
 public:
  static constexpr u64 kPageBytes = 4096;

  void mount(volume::Volume* volume) { volume_ = volume; }
  // Of files of one key. A file that is closed keeps its clean pages.
  u32 add_file(volume::InodeId inode);
  void open(u32 file);
  // The last RELEASE of it: what it said, and whether the key was leaving.
  struct Released {
    bool leaving = false;
    Errc error{};
  };
  Released release(u32 file);
  volume::HandleId handle(u32 file) const;

  // Each answers Errc{} when it is acknowledged.
  Errc store(u32 file, u64 page);  // into the mapped page, read in first if it is not there
  Errc write(u32 file, u64 page);  // write(2), of a whole page
  Errc look(u32 file, u64 page);   // reads the page in if it is not there

  // Whatever is dirty goes down, as the kernel's flusher sees to: of that page; answers what it
  // met.
  Errc write_back(u32 file, u64 page);

  u64 drop_pages(const crypto::KeyId& key, Which which) override;
  void try_again(const crypto::KeyId& key) override;
  u64 tries() const;
  void wait_for_tries(u64 seen);  // until it was called since, or stop_waiting()
  void stop_waiting();

  // By the thread that writes back, after each page that it dropped; before the first one with 0.
  std::function<void(u64 dropped)> while_dropping;
  std::vector<Which> drops() const;  // asked for so far

  bool cached(u32 file, u64 page) const;
  u64 cached_pages(u32 file) const;
  // The pages whose newest acknowledged value the volume does not have; they have the value that it
  // has from now on. Through handles of its own.
  std::vector<u64> lost_pages(u32 file);

 private:
  struct Page {
    u64 value = 0;
    bool there = false;  // its value is what is in the file
    bool dirty = false;
    bool locked = false;
  };
  struct File {
    volume::InodeId inode;
    std::optional<volume::HandleId> handle;
    std::map<u64, Page> pages;
    std::map<u64, u64> acknowledged;
  };
  using Content = std::array<std::byte, kPageBytes>;
  static void fill(Content& content, u64 value);

  Page& lock_page(u32 file, u64 page) LK_REQUIRES(mutex_);
  void unlock_page(u32 file, u64 page) LK_REQUIRES(mutex_);
  Errc read_in(u32 file, u64 page) LK_REQUIRES(mutex_);
  Errc write_down(u32 file, u64 page) LK_REQUIRES(mutex_);
  u64 drop_file(u32 file, u64 dropped);
  void drop_now(Which which);

  volume::Volume* volume_ = nullptr;
  mutable Mutex mutex_;
  CondVar changed_;  // with mutex_: a page was unlocked, or it is to be tried again
  std::vector<File> files_ LK_GUARDED_BY(mutex_);
  std::vector<Which> drops_ LK_GUARDED_BY(mutex_);
  u64 next_value_ LK_GUARDED_BY(mutex_) = 1;
  u64 tries_ LK_GUARDED_BY(mutex_) = 0;
  bool no_waiting_ LK_GUARDED_BY(mutex_) = false;
};

}  // namespace latchkey::tests
