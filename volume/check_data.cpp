#include "volume/check_data.h"

#include <fmt/format.h>

#include <algorithm>
#include <tuple>

#include "engine/extent_table.h"
#include "extent/context.h"

namespace latchkey::volume {

namespace {

std::string at(u64 block) { return fmt::format("device offset {}", block * engine::kBlockBytes); }

std::string at(const MapPiece& piece) {
  return fmt::format("{}, file offset {}, {}", to_text(piece.inode),
                     piece.file_block * engine::kBlockBytes, at(piece.disk_block));
}

// Tweaks that one extent key has sealed under.
struct Units {
  crypto::KeyId key_id;
  crypto::Nonce nonce;
  u64 first = 0;
  u64 end = 0;
  u64 block = 0;
  auto order() const { return std::tie(nonce, key_id, first, block); }
};

// Records come in the order of their blocks, and so do the pieces: each piece is looked at while a
// record may touch it.
class DataChecker {
 public:
  DataChecker(std::vector<MapPiece> pieces, const PolicyOf& policy_of,
              std::vector<engine::Finding>& findings)
      : pieces_(std::move(pieces)), policy_of_(policy_of), findings_(findings) {
    std::ranges::sort(pieces_, [](const MapPiece& a, const MapPiece& b) {
      return std::tie(a.disk_block, a.inode, a.file_block) <
             std::tie(b.disk_block, b.inode, b.file_block);
    });
  }

  void record(const engine::Key& key, Bytes value) {
    const auto decoded = engine::decode_extent(key, value);
    if (!decoded) return;  // told by the engine's check
    const engine::BlockRun& run = decoded->run;
    const auto context = extent::decode_context(decoded->context);
    if (!context) found(context.error().what, at(run.block));
    if (context && *context) {
      const u64 first = decoded->first_unit;
      if (first + run.count < first) found("the tweaks of an extent run over", at(run.block));
      units_.push_back({(*context)->key_id, (*context)->nonce, first,
                        std::max(first, first + run.count), run.block});
    }
    std::vector<u32> references(run.count, 0);
    touch(run, [&](MapPiece& piece) {
      const u64 from = std::max(piece.disk_block, run.block);
      const u64 to = std::min(piece.disk_block + piece.blocks, run.end());
      for (u64 block = from; block < to; ++block) ++references[block - run.block];
      piece.held += static_cast<u32>(to - from);
      if (context) expect_policy(*context, piece);
    });
    const auto wrong =
        std::ranges::find_if(references, [&](u32 count) { return count != decoded->references; });
    if (wrong == references.end()) return;
    found(fmt::format("a block has {} references and its extent record says {}", *wrong,
                      decoded->references),
          at(run.block + static_cast<u64>(wrong - references.begin())));
  }

  void finish() {
    for (const MapPiece& piece : pieces_)
      if (piece.held < piece.blocks)
        found("a file refers to a block that no extent record holds", at(piece));
    std::ranges::sort(units_, {}, &Units::order);
    for (std::size_t i = 1, widest = 0; i < units_.size(); ++i) {
      const Units &before = units_[widest], &now = units_[i];
      const bool same = before.nonce == now.nonce && before.key_id == now.key_id;
      if (same && now.first < before.end)
        found("a key and tweak stand over two blocks", at(before.block) + " and " + at(now.block));
      if (!same || now.end > before.end) widest = i;
    }
  }

 private:
  void found(std::string what, std::string where) {
    findings_.push_back({std::move(what), std::move(where), false});
  }

  template <class Fn>
  void touch(const engine::BlockRun& run, const Fn& fn) {
    std::erase_if(open_, [&](std::size_t i) {
      return pieces_[i].disk_block + pieces_[i].blocks <= run.block;
    });
    for (; next_ < pieces_.size() && pieces_[next_].disk_block < run.end(); ++next_)
      if (pieces_[next_].disk_block + pieces_[next_].blocks > run.block) open_.push_back(next_);
    for (const std::size_t i : open_)
      if (pieces_[i].disk_block < run.end()) fn(pieces_[i]);
  }

  void expect_policy(const std::optional<extent::Context>& context, const MapPiece& piece) {
    const auto policy = policy_of_(piece.inode);
    if (!policy) return;
    const auto key = context ? std::optional(context->key_id) : std::nullopt;
    if (key != *policy) found("an extent is not encrypted as its file is", at(piece));
  }

  std::vector<MapPiece> pieces_;
  const PolicyOf& policy_of_;
  std::vector<engine::Finding>& findings_;
  std::size_t next_ = 0;           // first piece that begins behind all records so far
  std::vector<std::size_t> open_;  // pieces that begin before and may reach further
  std::vector<Units> units_;
};

}  // namespace

Result<void> check_data(const engine::View& view, std::vector<MapPiece> pieces,
                        const PolicyOf& policy_of, std::vector<engine::Finding>& findings) {
  DataChecker checker(std::move(pieces), policy_of, findings);
  LK_TRYV(view.scan(engine::kExtentTree, {}, {~u64{0}, 255, ~u64{0}},
                    [&](const engine::Key& key, Bytes value) {
                      checker.record(key, value);
                      return true;
                    }));
  checker.finish();
  return {};
}

}  // namespace latchkey::volume
