// Repair of references: how many maps refer to each block is counted anew, as check does it, and
// the extent records say that. What nothing refers to is free.

#include <fmt/format.h>

#include <algorithm>

#include "engine/extent_table.h"
#include "extent/map.h"
#include "volume/repair_state.h"

namespace latchkey::volume {

namespace {

constexpr engine::Key kLastKey{~u64{0}, 255, ~u64{0}};

// One side of a piece of a map: how many more refer from here on.
struct Edge {
  u64 block = 0;
  i64 change = 0;
};

// Ascending steps: from steps[i].block on so many refer, until the next one.
struct Step {
  u64 block = 0;
  u64 references = 0;
};

Result<std::vector<Step>> count(Mender& mender) {
  const u64 blocks = mender.blocks();
  std::vector<Edge> edges;
  LK_TRYV(mender.view().scan_distinct([&](engine::TreeId, const engine::Key& key, Bytes value) {
    const auto run = runs_of(key, value);
    if (!run || run->block >= blocks) return true;
    edges.push_back({run->block, 1});
    edges.push_back({std::min(run->end(), blocks), -1});
    return true;
  }));
  std::ranges::sort(edges, {}, &Edge::block);
  std::vector<Step> steps;
  i64 references = 0;
  for (const Edge& edge : edges) {
    if (steps.empty() || steps.back().block != edge.block) steps.push_back({edge.block, 0});
    references += edge.change;
    steps.back().references = static_cast<u64>(references);
  }
  const auto same = std::ranges::unique(steps, {}, &Step::references);  // two pieces that touch
  steps.erase(same.begin(), same.end());
  return steps;
}

// The steps over [from, to), the first of them clipped.
std::vector<Step> steps_over(const std::vector<Step>& steps, u64 from, u64 to) {
  auto it = std::ranges::upper_bound(steps, from, {}, &Step::block);
  std::vector<Step> over;
  over.push_back({from, it == steps.begin() ? 0 : std::prev(it)->references});
  for (; it != steps.end() && it->block < to; ++it) over.push_back(*it);
  return over;
}

engine::ExtentRecord part(const engine::ExtentRecord& record, u64 from, u64 to) {
  engine::ExtentRecord piece = record;
  const u64 skipped = from - record.run.block;
  piece.run = {from, static_cast<u32>(to - from)};
  piece.first_unit += skipped;
  piece.checksums.assign(record.checksums.begin() + static_cast<i64>(skipped),
                         record.checksums.begin() + static_cast<i64>(to - record.run.block));
  return piece;
}

Result<void> put_extent(engine::Transaction& transaction, const engine::ExtentRecord& record) {
  return transaction.put(engine::kExtentTree, {record.run.block, 1, 0},
                         engine::encode_extent(record));
}

bool is_wrong(const engine::ExtentRecord& record, const std::vector<Step>& over) {
  return std::ranges::any_of(
      over, [&](const Step& step) { return step.references != record.references; });
}

// The record becomes one for each count.
Result<void> split(engine::Transaction& transaction, const engine::ExtentRecord& record,
                   const std::vector<Step>& over) {
  for (std::size_t i = 0; i < over.size(); ++i) {
    const u64 end = i + 1 < over.size() ? over[i + 1].block : record.run.end();
    engine::ExtentRecord piece = part(record, over[i].block, end);
    piece.references = static_cast<u32>(std::max<u64>(over[i].references, 1));
    LK_TRYV(put_extent(transaction, piece));
    if (over[i].references == 0) LK_TRYV(transaction.release_extent(piece.run));
  }
  return {};
}

}  // namespace

Result<void> mend_references(Mender& mender, std::vector<extent::DiskRun>& unheld) {
  LK_TRY(const std::vector<Step> steps, count(mender));
  std::vector<engine::ExtentRecord> wrong;
  u64 held = 0;  // up to here every block that is referred to is in a record or in `unheld`
  const auto gap = [&](u64 to) {
    if (held >= to) return;
    const std::vector<Step> over = steps_over(steps, held, to);
    for (std::size_t i = 0; i < over.size(); ++i) {
      const u64 end = i + 1 < over.size() ? over[i + 1].block : to;
      if (over[i].references != 0)
        unheld.push_back({over[i].block, static_cast<u32>(end - over[i].block)});
    }
  };
  LK_TRYV(mender.view().scan(engine::kExtentTree, {}, kLastKey,
                             [&](const engine::Key& key, Bytes value) {
                               auto record = engine::decode_extent(key, value);
                               if (!record) return true;  // a count of a node
                               gap(record->run.block);
                               held = record->run.end();
                               if (is_wrong(*record, steps_over(steps, record->run.block, held)))
                                 wrong.push_back(std::move(*record));
                               return true;
                             }));
  gap(mender.blocks());
  for (const engine::ExtentRecord& record : wrong) {
    const std::vector<Step> over = steps_over(steps, record.run.block, record.run.end());
    if (std::ranges::any_of(over, [](const Step& step) { return step.references > ~u32{0}; }))
      continue;
    LK_TRYV(mender.mend(
        fmt::format("references of an extent were counted anew, {} before", record.references),
        fmt::format("device offset {}", record.run.block * engine::kBlockBytes),
        [&](engine::Transaction& transaction) { return split(transaction, record, over); },
        static_cast<u32>(4 * over.size() + Mender::kRecords)));
  }
  return {};
}

}  // namespace latchkey::volume
