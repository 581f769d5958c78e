#pragma once
// One run of torture, in one mode: writers write to files of their own (torture_writer.h) while a
// remover removes the key and adds it again. Every acknowledged write call is remembered; at the
// end the store is closed, opened again from the device, and each is looked for (torture_ledger.h).
//
// In one half of the rounds the remover waits until the key is absent and takes the time; in the
// other half it looks for the master in memory while files are open, and adds the key after a pause
// whatever its state.

#include <memory>
#include <random>
#include <vector>

#include "cli/load.h"
#include "cli/master_watch.h"
#include "cli/torture_writer.h"

namespace latchkey::cli {

struct TortureRow {
  keymgr::RemovalMode mode{};
  TortureWrites writes;
  u64 reported_lost = 0, silently_lost = 0;  // write calls
  u64 removals = 0;
  u64 removals_refused = 0;    // busy, or no room for the keys that were to stay
  std::vector<u64> absent_ns;  // from the call to the status, ascending
  u64 looks = 0;               // with files open all the while
  u64 looks_with_master = 0;
  u64 masters_left = 0;  // looks that found one where the row or the status says it is gone

  bool exercised() const;
  bool kept_its_word() const;
};

class TortureRun {
 public:
  TortureRun(const Common& common, const TortureArgs& args, keymgr::RemovalMode mode);

  Result<TortureRow> run();

 private:
  Result<void> write_under_removal(volume::Volume& volume, const std::string& directory);
  Result<void> remove_and_add(TortureScene& scene);
  Result<void> remove_once(TortureScene& scene);
  volume::RemovalRequest request();
  void clear_the_room(TortureScene& scene);
  void wait_for_absence(TortureScene& scene, u64 begun_ns, keymgr::KeyState state);
  void look_inside(TortureScene& scene);
  Result<void> count(volume::Volume& volume, const std::string& directory);
  void pause();

  const Common& common_;
  const TortureArgs& args_;
  const keymgr::RemovalRow& row_;
  Env& env_;
  std::mt19937_64 random_;
  const ScratchKey key_;
  MasterWatch watch_;
  crypto::KeyId id_;
  std::vector<std::unique_ptr<TortureWriter>> writers_;
  TortureRow result_;
  u64 bytes_told_ = 0;  // lost, by removal reports
};

}  // namespace latchkey::cli
