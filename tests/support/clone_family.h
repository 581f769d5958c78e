#pragma once
// A family of subvolume trees that are cloned from each other, beside a model that has no disk: one
// std::map for each tree. Every record may name one block of data, which it refers to.

#include <map>
#include <optional>
#include <random>
#include <vector>

#include "engine/store.h"

namespace latchkey::tests {

struct FamilyRecord {
  u64 tag = 0;  // random: its size and the data's contents follow from it
  bool data = false;
  bool operator==(const FamilyRecord&) const = default;
};
using FamilyTree = std::map<u64, FamilyRecord>;
using FamilyModel = std::map<engine::TreeId, FamilyTree>;

// What OpenOptions::runs_of must be for these trees.
std::optional<engine::BlockRun> family_runs_of(const engine::Key& key, Bytes value);
engine::OpenOptions family_options();

// Changes a store and the model alike. Every step is one transaction.
class CloneFamily {
 public:
  struct Options {
    u64 names = 200;  // keys are below that
    u64 trees_max = 6;
    u32 value_bytes_max = 300;
    u32 changes_max = 4;    // records that one step changes
    u32 context_bytes = 0;  // of extents: makes their table longer
    u32 drop_nodes = 3;     // of a step that drops
    bool write_data = true;
  };
  CloneFamily(engine::Store& store, u64 seed, const Options& options)
      : store_(&store), random_(seed), options_(options) {
    model_[engine::kFirstSubvolume] = {};
  }
  void reopened(engine::Store& store) { store_ = &store; }

  // One random operation. no_space: nothing was done.
  Result<void> step();
  Result<void> change(engine::TreeId tree, u32 records);  // puts and erases
  Result<void> put(engine::TreeId tree, u64 name, bool data);
  Result<void> erase(engine::TreeId tree, u64 name);
  // In one transaction, records that lie far from each other.
  Result<void> erase_spread(engine::TreeId tree, u32 records);
  Result<void> clone(engine::TreeId from);  // to a new number
  void begin_drop(engine::TreeId tree);     // the model forgets it, the store has it yet
  Result<bool> drop_step(engine::TreeId tree);
  Result<void> drop(engine::TreeId tree);  // to its end
  // Every tree but the first is dropped, and the first emptied.
  Result<void> empty();

  const FamilyModel& model() const { return model_; }
  // Trees that have lost a part: they are not in the model any more.
  const std::vector<engine::TreeId>& dropping() const { return dropping_; }
  u64 random() { return random_(); }
  engine::TreeId any_tree();

 private:
  Result<void> put(engine::Transaction& transaction, engine::TreeId tree, u64 name,
                   const FamilyRecord& record, std::optional<engine::BlockRun> run);
  Result<void> erase(engine::Transaction& transaction, engine::TreeId tree, u64 name);
  Result<void> write_data(engine::BlockRun run, u64 tag, u32& checksum);

  engine::Store* store_;
  std::mt19937_64 random_;
  const Options options_;
  FamilyModel model_;
  std::vector<engine::TreeId> dropping_;
  engine::TreeId next_tree_ = engine::kFirstSubvolume + 1;
};

// What the store holds, each block of data read and compared with what its record says. Trees of
// `except` are left out. An error of the test is reported to gtest.
void read_family(engine::Store& store, const std::vector<engine::TreeId>& except, bool data,
                 FamilyModel& model);
// check_store() without findings, and every extent has the references that the records give it.
void expect_family_clean(engine::Store& store, bool data);

}  // namespace latchkey::tests
