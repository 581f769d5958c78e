#pragma once
// What a check knows beyond its findings: for the repair.

#include <vector>

#include "engine/store_state.h"

namespace latchkey::engine {

// What the extent table should say of a node.
struct NodeCount {
  Key key;
  u64 references = 0;  // below 2: no record
};

struct Checked {
  CheckResult result;
  std::vector<NodeCount> counts_wrong;  // those without a record first
  u64 extent_nodes = 0;
  std::vector<bool> reachable;  // by block: something refers to it
  bool whole = true;            // nothing that might refer to blocks is lost
  bool sound = true;            // every block is referred to once, and may be
  bool space_wrong = false;     // the bitmaps are damaged, or do not say what is reachable
  u64 promised = 0;             // blocks, as the trees count
  bool promised_wrong = false;  // the superblock has another sum
};
Result<Checked> check_state(StoreState& state, const CheckOptions& options);

}  // namespace latchkey::engine
