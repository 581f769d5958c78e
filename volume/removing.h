#pragma once
// One removal under way, from its door to its end: the steps that removal.cpp puts in order.

#include <string_view>
#include <vector>

#include "volume/state.h"

namespace latchkey::volume {

class Volume::State::Removing {
 public:
  // All of them outlive it. `until`: of a suspension.
  Removing(State& state, keymgr::Removal& removal, Until until, RemovalReport& report);

  Result<void> run();
  void end_phase(std::string_view name);
  bool leaves_files_busy() const { return row_.stays != keymgr::Stays::nothing; }

 private:
  std::vector<InodePtr> owners() const;
  void keep_idle(std::vector<InodePtr>& list) const;
  void drop_front_pages();
  Result<void> prepare();
  void go_back();
  Result<void> commit();
  void check_sealed() const;
  void drop();
  Result<void> let_leave();
  void count_lost(const Inode& inode, u64 bytes);
  void name_lost(const Inode& inode, u64 bytes);

  State& state_;
  keymgr::Removal& removal_;
  const keymgr::RemovalRow& row_;
  const crypto::KeyId id_;
  const Until until_;
  RemovalReport& report_;
  std::vector<InodePtr> leased_;  // those who hold a lease, or did; from before the commit on
  u64 last_;                      // when the last phase ended
};

}  // namespace latchkey::volume
