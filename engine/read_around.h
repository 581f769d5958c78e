#pragma once
// Ciphertext around small reads. Small files that were written together lie side by side, and who
// reads one after another would wait for the device once for each: near reads read the window of
// the device that they lie in, whole, and those that follow find themselves in memory.
//
// Invariants
//   A1  what a window has of an extent is what the device has had since that extent was inserted:
//       forget() comes between the end of a write and the moment from which its extent can be
//       looked up, and ends windows and loads that have any of its blocks
//   A2  it has no more than the device does: nothing is decrypted here
// A1 is enough, as a block is written again only when nobody can look up or has pinned what was in
// it (store.h, E2). Readers verify checksums all the same, and read the device where they fail.
//
// Thread-safe. Lock: ReadAround::mutex_, a leaf; no I/O under it.

#include <array>
#include <memory>
#include <optional>
#include <utility>

#include "base/mutex.h"
#include "engine/types.h"

namespace latchkey::engine {

class ReadAround {
 public:
  static constexpr u32 kWindowBlocks = 32;
  static constexpr u64 kWindowBytes = kWindowBlocks * kBlockBytes;
  static constexpr u32 kSmallBlocks = 16;  // what reads more at a time has no need of it

  using Memory = std::shared_ptr<const std::byte[]>;  // of kWindowBytes
  struct Found {
    Memory memory;
    Bytes bytes;  // in it
  };

  // A window on its way from the device. Ended by keep(), or for nothing by its destructor.
  class Load {
   public:
    Load(Load&& other) noexcept { *this = std::move(other); }
    Load& operator=(Load&& other) noexcept {
      std::swap(owner_, other.owner_);
      std::swap(window_, other.window_);
      std::swap(ticket_, other.ticket_);
      return *this;
    }
    ~Load();
    BlockRun window() const { return window_; }
    void keep(Bytes read);  // what the device has of it
    void refuse();          // it cannot be read: not asked for again before another could not be

   private:
    friend class ReadAround;
    Load(ReadAround& owner, BlockRun window, u64 ticket)
        : owner_(&owner), window_(window), ticket_(ticket) {}
    ReadAround* owner_ = nullptr;
    BlockRun window_;
    u64 ticket_ = 0;
  };

  explicit ReadAround(u64 blocks);  // of the device

  // What the device has of `run`, if a window has it. `run` is in the tree and pinned.
  std::optional<Found> find(BlockRun run) LK_EXCLUDES(mutex_);
  // Behind a find() in vain: the window to read instead, if others were read near by before.
  std::optional<Load> load(BlockRun run) LK_EXCLUDES(mutex_);
  // `run` has been written, and nobody can look it up yet.
  void forget(BlockRun run) LK_EXCLUDES(mutex_);

 private:
  static constexpr u64 kNone = ~u64{0};
  struct Window {
    u64 number = kNone;  // of kWindowBlocks each, from the device's begin
    Memory memory;
  };

  // Of a window on its way. None: its load was forgotten, or there is none.
  struct Loading {
    u64 ticket = kNone;
    u64 number = kNone;
  };

  bool is_near(u64 number) const LK_REQUIRES(mutex_);
  // Whether what was read is still what the device has.
  bool end_load(u64 ticket) LK_REQUIRES(mutex_);

  const u64 blocks_;
  Mutex mutex_;
  std::array<Window, 8> windows_ LK_GUARDED_BY(mutex_);
  u32 oldest_ LK_GUARDED_BY(mutex_) = 0;
  std::array<Loading, 8> loading_ LK_GUARDED_BY(mutex_);
  u64 next_ticket_ LK_GUARDED_BY(mutex_) = 0;
  std::array<u64, 16> recent_ LK_GUARDED_BY(mutex_){};  // windows in which something was read
  u32 next_recent_ LK_GUARDED_BY(mutex_) = 0;
  u64 refused_ LK_GUARDED_BY(mutex_) = kNone;  // the last window that could not be read
};

}  // namespace latchkey::engine
