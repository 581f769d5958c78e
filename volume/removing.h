#pragma once
// One removal under way, from its door to its end: the steps that removal.cpp puts in order.

#include <map>
#include <string_view>
#include <vector>

#include "volume/lost_pages.h"
#include "volume/state.h"

namespace latchkey::volume {

class Volume::State::Removing {
 public:
  // All of them outlive it. `until`: of a suspension.
  Removing(State& state, keymgr::Removal& removal, Until until, RemovalReport& report);
  ~Removing();
  Removing(const Removing&) = delete;
  Removing& operator=(const Removing&) = delete;

  Result<void> run();
  void end_phase(std::string_view name);
  // What came down from the front and was refused; the last thing that it counts.
  void count_refused();
  bool leaves_files_busy() const { return row_.stays != keymgr::Stays::nothing; }

 private:
  std::vector<InodePtr> owners() const;
  void keep_idle(std::vector<InodePtr>& list) const;
  Result<void> take_front_pages();
  void drop_front_pages();
  Result<void> prepare();
  void go_back();
  Result<void> commit();
  void check_sealed() const;
  void drop();
  Result<void> let_leave();
  void count_pages(const Inode& inode);
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

  // With a front. A page that it and the volume had is lost once.
  Refusals refusals_;  // under table_mutex while it is listed
  std::map<InodeId, LostPages> lost_pages_;
};

}  // namespace latchkey::volume
