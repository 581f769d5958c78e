#pragma once
// From the log of one run (recording_device.h) to every state that a crash may leave: the log falls
// into epochs, between two flushes; at any instant of an epoch what earlier flushes cover is on the
// device, and each write since then is there, absent or torn at a sector, on its own.
//
// Not thread-safe.

#include <functional>
#include <unordered_map>
#include <vector>

#include "tests/support/recording_device.h"

namespace latchkey::tests {

inline constexpr u64 kSector = 512;

// What became of each write of an epoch: how many of its sectors, from the first one on, are there.
using Fates = std::vector<u32>;

class Epoch {
 public:
  // `writes` of `log`, in the order of submission; moments[i] is the test's moment when writes[i]
  // was submitted, or `begin` if that was before.
  struct Write {
    const LogWrite* write = nullptr;
    u64 moment = 0;
  };
  Epoch(SimImage base, std::vector<Write> writes, u64 begin, u64 end);

  const std::vector<Write>& writes() const { return writes_; }
  u64 begin() const { return begin_; }  // the first moment in which a crash meets it, and the last
  u64 end() const { return end_; }
  u32 sectors(std::size_t write) const {
    return static_cast<u32>(writes_[write].write->pages.size() * (kSimPage / kSector));
  }
  Fates all() const;
  Fates none() const { return Fates(writes_.size(), 0); }
  // The earliest moment in which that can be.
  u64 earliest(const Fates& fates) const;

  SimImage image(const Fates& fates) const;
  bool touches(u64 page) const { return touching_.contains(page); }
  u64 page_hash(u64 page, const Fates& fates) const;
  // Of all that differs between states of this epoch; equal hashes, equal images.
  u64 image_hash(const Fates& fates) const;

 private:
  struct Touch {
    u32 write = 0;
    u32 page = 0;  // of the write
    u64 hash = 0;  // of that page, whole
  };
  SimPagePtr page(u64 index, const std::vector<Touch>& touches, const Fates& fates) const;

  SimImage base_;
  std::vector<Write> writes_;
  u64 begin_, end_;
  std::unordered_map<u64, std::vector<Touch>> touching_;
};

u64 hash_of(const SimPagePtr& page);  // 0: zeros

// The epochs of a run that began with `start`. The log must live as long as they do.
void for_each_epoch(const SimImage& start, const DeviceLog& log,
                    const std::function<void(const Epoch&)>& fn);

struct StateBudget {
  u32 subsets_up_to = 12;  // writes of which all subsets are tried
  u32 random_subsets = 512;
  u64 seed = 1;
  std::function<bool(u64 page)> superblock = {};  // pairs of these are torn in all combinations
};
// All prefixes; all subsets of up to `subsets_up_to` writes, else each single drop, each single
// survivor and random subsets; every write torn at each sector, with all others there and with
// none; and of two superblocks all pairs of {absent, torn, whole}, with all others there.
void for_each_state(const Epoch& epoch, const StateBudget& budget,
                    const std::function<void(const Fates&)>& fn);

std::string to_text(const Epoch& epoch, const Fates& fates);  // "1-0-t3": there, absent, torn

}  // namespace latchkey::tests
