#pragma once
// Four superblocks, far apart, in two sets of two (design D2). Commit g writes both copies of set g
// mod 2: a torn commit harms only the set that it was writing, a rotten copy has its twin.

#include <optional>
#include <vector>

#include "engine/format.h"
#include "engine/io.h"

namespace latchkey::engine {

// The superblock as code uses it.
struct Superblock {
  u64 generation = 0;
  VolumeId volume_id{};
  u64 size_bytes = 0;
  u32 node_bytes = 0;
  u32 extent_blocks_max = 0;
  u32 tree_count = 0;
  u64 features_compat = 0, features_ro_compat = 0, features_incompat = 0;
  Pointer root;
  u64 used_blocks = 0;
  u64 node_count = 0;
  u64 extent_node_count = 0;
  u64 promised_blocks = 0;
  Checksum map_checksum{}, map_checksum_before{};
  std::array<u64, 2> log_head{};  // places of the fsync log's first two blocks; 0: it has none
  std::string label;
};

// Device block of place 0 to 3 on a device of that size; places 0 and 2 are set 0, 1 and 3 set 1.
u64 superblock_place(u32 place, u64 device_bytes);

SuperblockDisk encode_superblock(const Superblock& superblock, u32 place);

struct SuperblockCopy {
  std::optional<Superblock> superblock;
  const char* wrong = nullptr;  // why it is not believed
  bool unreadable = false;      // the device refused, so what it says is not known
  bool blank = false;           // all zeros: as mkfs leaves the set that no commit wrote yet
};

struct SuperblockScan {
  std::array<SuperblockCopy, 4> copies;
  // The newest that verifies; with `previous`, the one before it: of older ones nothing is whole.
  std::optional<Superblock> newest(bool previous) const;
  // Neither copy of the other set verifies, though it was written once: a commit was torn, which
  // nobody was told is durable, or the newest generation is gone with its acknowledged writes. The
  // device cannot tell which.
  bool stepped_back() const;
  // What must be written before anything is shown or acknowledged. Of the newest set, a copy that
  // is not there though it can be read: a crash tore it. Of either set, a copy that the device
  // refused, as its twin says: it may have a generation that was never acknowledged, and whoever
  // can read it later would take that for the newest.
  struct Rewrite {
    u32 place;
    Superblock superblock;
  };
  std::vector<Rewrite> to_write_anew() const;
  // No copy of the other set verifies, and one was not read: what it says may be newer and
  // acknowledged. No crash looks like that, so nobody steps back for it but on request (D2).
  bool newest_may_be_unread() const;

 private:
  // Copies of the set that `newest` is not in.
  std::array<const SuperblockCopy*, 2> others_of(const Superblock& newest) const;
};

// Reads all four. Errors: io when none can be read; wrong_device when no copy has our magic number;
// format_version when a copy has another version, or the newest one a feature of incompat that is
// not known here: an older generation is not opened instead; damaged when copies have the magic
// number and none verifies.
Result<SuperblockScan> scan_superblocks(Io& io, u64 device_bytes);

// Both copies of the generation's set. Does not flush.
Result<void> write_superblocks(Io& io, const Superblock& superblock);
// One copy, into its place.
Result<void> write_superblock(Io& io, const Superblock& superblock, u32 place);

}  // namespace latchkey::engine
