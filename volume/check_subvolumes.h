#pragma once
// The part of an offline check that is about subvolumes: their records, their trees and their
// names against each other.

#include <map>
#include <vector>

#include "volume/subvolumes.h"

namespace latchkey::volume {

class SubvolumeChecker {
 public:
  explicit SubvolumeChecker(std::vector<engine::Finding>& findings) : findings_(findings) {}

  // The records, and the trees that there are.
  Result<void> read(const engine::View& view);
  // Subvolumes whose trees are whole.
  std::vector<engine::TreeId> there() const;
  // Trees without a record that can be read; one that is not empty may be a subvolume's all the
  // same.
  std::vector<engine::TreeId> unknown() const;
  // An entry of kind subvolume, as one of those has it.
  void name(InodeId directory, const std::string& stored, engine::TreeId leads_to);
  void check_names();  // when every name has been told

 private:
  void found(std::string what, engine::TreeId id);
  Result<void> read_trees(const engine::View& view);
  bool is_below_the_first(engine::TreeId id) const;

  std::vector<engine::Finding>& findings_;
  std::map<engine::TreeId, Subvolume> subvolumes_;
  std::map<engine::TreeId, u32> names_;  // how many lead there
  std::vector<engine::TreeId> trees_;
};

}  // namespace latchkey::volume
