#pragma once
// Runs the operations of the conformance table on a mounted store of its own: a process for each
// user (player.h), and what concerns several of them or the store itself.

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tests/mounted/actor.h"
#include "tests/mounted/mounted_store.h"
#include "tests/mounted/player.h"

namespace latchkey::tests {

class MountWorld {
 public:
  MountWorld(Setting setting, KeyDoor door);
  // "A", "B", "C" or "root".
  Outcome run(const std::string& uid, const std::string& operation);

 private:
  using Words = std::vector<std::string>;

  void make_store(u64 bytes);
  Actor& actor(const std::string& uid);
  std::string with_names(const std::string& operation) const;
  Outcome done_by(const std::string& uid, const Words& words, const std::string& operation);
  Outcome reopen();
  Outcome add_until_error(const std::string& uid, const Words& words, const std::string& operation);
  Outcome status_elsewhere(const std::string& uid, const std::string& operation);
  Outcome race_claims(const Words& words);
  // The kernel tells of a last close after close(2) has returned.
  void wait_for_closes();
  void note_handles(const Words& words);

  const Setting setting_;
  const KeyDoor door_;
  std::unique_ptr<MountedStore> store_;
  std::map<std::string, std::unique_ptr<Actor>> actors_;
  std::map<std::string, std::string> names_;   // of keys that are called otherwise, too
  std::map<std::string, std::string> owners_;  // who has a handle
  std::map<std::string, std::size_t> kept_;    // handles on encrypted files, by what has them
  std::size_t inside_ = 0;                     // all of those
  bool some_may_close_ = false;
  u32 claims_ = 0;       // that a race has left
  u64 failed_adds_ = 0;  // in it
};

}  // namespace latchkey::tests
