#pragma once
// An image of a store as a fuzzer wants it: short when written down, and with checksums that can be
// made right again after its bytes were changed, so that what lies behind them is reached.
//
// Written down: Le32 device blocks; then pieces of Le32 block, Le16 offset, Le16 size, bytes. What
// no piece covers is zero. Decoding is total: any bytes are some image.

#include <array>
#include <map>
#include <set>
#include <vector>

#include "engine/format.h"
#include "engine/free_space_format.h"
#include "engine/space_layout.h"
#include "tests/support/sim_image.h"

namespace latchkey::tests {

class StoreImage {
 public:
  static constexpr u64 kDeviceBlocksMax = 65536;  // 256 MiB: three regions of free space
  using Block = std::array<std::byte, engine::kBlockBytes>;

  static StoreImage decode(Bytes bytes);
  std::vector<std::byte> encode() const;

  static StoreImage from_sim(const SimImage& image, u64 device_bytes);
  SimImage to_sim() const;

  u64 device_blocks = 0;
  std::map<u64, Block> blocks;  // the others are zero

  // Device blocks where something lies that begins with this.
  std::vector<u64> blocks_with(Bytes magic) const;
  std::vector<u64> nodes() const;
  std::vector<u64> superblocks() const;
  // First places of the nodes that the newest superblock leads to: what an opening reads.
  std::vector<u64> live_nodes() const;
  // The pointers in a node: of its entries, or of the tree records in a leaf of the root tree.
  struct PointerAt {
    std::size_t offset = 0;
    engine::TreeId tree = 0;  // that it leads to
  };
  static std::vector<PointerAt> pointers_in(Bytes node);

  // Makes every checksum right: of bitmaps and slot maps, then of all nodes that can be reached
  // from a superblock, from the leaves up, then of the superblocks. Second places become copies of
  // the first. `headers`: also what nodes say of themselves becomes what their pointers expect, and
  // bitmaps count their bits.
  void repair(bool headers);

 private:
  struct Repair {
    bool headers = false;
    u32 node_bytes = 0;
    engine::VolumeId volume{};
    std::set<u64> seen;  // a tree may have become a circle
  };
  void repair_superblock(u64 block, Repair& repair);
  void repair_space(bool headers);
  bool is_too_small() const {  // to be a store
    return device_blocks < engine::kDeviceBytesMin / engine::kBlockBytes;
  }
  engine::SpaceLayout space_layout() const;
  Checksum map_checksum(u64 generation) const;
  void repair_entries(Block& map, const engine::SlotMapDisk& head);
  void repair_pointer(engine::PointerDisk& pointer, engine::TreeId tree, Repair& repair);
  void repair_children(MutableBytes node, Repair& repair);
  std::vector<std::byte> load(u64 block, u64 size) const;
  void store(u64 block, Bytes bytes);
};

}  // namespace latchkey::tests
