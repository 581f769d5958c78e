#pragma once
// The operations of the crash points: two directories and two files of an encrypted tree, what may
// be done to them, and the model's word for each. A row adds an operation.

#include <span>
#include <string_view>
#include <vector>

#include "tests/support/point_model.h"
#include "volume/volume.h"

namespace latchkey::tests {

// Who does the operations: a volume that is open, and what he holds.
struct PointActor {
  volume::Volume& volume;
  crypto::KeyId key;
  std::vector<volume::HandleId> held = {};
};

struct PointOperation {
  std::string_view name;
  Result<void> (*run)(PointActor& actor);
  // What it may have done as soon as it has begun. False: the volume must refuse.
  bool (*begun)(PointModel& model);
  // What else is so when it has returned without an error; null: nothing.
  void (*done)(PointModel& model) = nullptr;
};
std::span<const PointOperation> point_operations();
const PointOperation& point_operation(std::string_view name);  // a row's

// What every run begins with: /vault under the key of point_key(), /vault/A/foo and /vault/B/bar in
// it; /plain without a policy. Synced.
Result<void> make_point_tree(volume::Volume& volume, const crypto::KeyId& key);
PointModel point_tree_model();
Result<crypto::KeyId> add_point_key(volume::Volume& volume);

Result<FoundTree> read_found_tree(volume::Volume& volume);
std::string to_text(const FoundTree& tree);  // a line for each entry, contents by their hashes

}  // namespace latchkey::tests
