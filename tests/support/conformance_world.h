#pragma once
// Runs the operations of the conformance table on a volume of its own: four users, keys by name,
// handles by name, and the names under which a locked directory lists what is in it.
//
// Operations (a path's last part "@x": the no-key name of what was called x before)
//   add K [size=N] [seed=N], add_and_remove size=N, remove K, remove_all K, status K,
//   status_elsewhere K, same_key K K, other_key K K, add_until_error PREFIX, policy PATH K,
//   raw add, raw remove K, raw status K with FIELD=N of the ioctl's argument (no_memory: it cannot
//   be read; filled: what is only written has bytes in it; through=H or none: another handle), raw
//   flags: what the last such removal wrote, v1 add|remove|status [again],
//   add_policy_put size=N, get_policy PATH K, get_nonce PATH fresh PATH K: adds K, makes the
//   directory with its policy, and in it f1, f2, sub/g, ln, empty open PATH MODE, hold H PATH MODE,
//   close H, open_in H NAME MODE, unlink_in H NAME
//     MODE: r, rw, append, create (must not be there), make, unnamed, directory
//   put PATH TEXT, overwrite PATH TEXT, get PATH SIZE [TEXT], get_filled PATH
//   read H OFFSET SIZE [TEXT], write H OFFSET TEXT, append H TEXT, fill H OFFSET SIZE, truncate H
//   SIZE, allocate H OFFSET SIZE, fsync H, fstat H, write_until_error H, link_handle H PATH stat
//   PATH [size|plain_length=N], list PATH [count] NAME..., readlink PATH TARGET mkdir, rmdir,
//   unlink, mkfifo, utimes, remove_tree, fsync_directory, keep_name PATH; chmod PATH MODE rename,
//   exchange, link, unlink_either PATH PATH; symlink TARGET PATH; setxattr PATH NAME VALUE
//   truncate_path PATH SIZE; reopen [read-only]; small_volume
//   race_writer K PATH, race_claims K, race_told WHAT, race_size PATH, race_content PATH,
//   race_users K

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tests/support/conformance_table.h"
#include "tests/support/keys.h"
#include "tests/support/sim_device.h"
#include "volume/volume.h"

namespace latchkey::tests {

// How keys and policies are asked for: by the library's calls, or by the bytes of fscrypt's ioctls
// (volume/fscrypt_abi.h).
enum class Door : u8 { calls, bytes };

class ConformanceWorld {
 public:
  explicit ConformanceWorld(Setting setting, Door door = Door::calls);
  ~ConformanceWorld();
  Outcome run(std::string_view uid, std::string_view operation);

 private:
  using Words = std::vector<std::string>;
  using Verb = Outcome (ConformanceWorld::*)(const Words&);
  struct Key {
    Heap raw;
    crypto::KeyId id;
  };
  static const std::map<std::string_view, Verb>& verbs();

  void make_volume(u64 device_bytes);
  Result<void> open_volume(bool read_only);
  Key& key(const std::string& name, std::size_t size = 64, u64 seed = 0);
  Result<crypto::KeyId> add(volume::Caller caller, Key& key);
  struct Removed {
    bool files_busy = false, other_users = false;
  };
  Result<Removed> remove(const crypto::KeyId& id, bool all_users);
  Result<void> set_policy(volume::InodeId directory, const crypto::KeyId& id);
  Result<volume::HandleId> open_at(volume::InodeId directory, const std::string& name,
                                   const std::string& mode, const std::string& path);
  Result<volume::HandleId> open_path(const std::string& path, const std::string& mode);
  struct Place {
    volume::InodeId directory;
    std::string name;
  };
  Result<Place> place(const std::string& path);
  Result<volume::InodeId> inode(const std::string& path);
  Result<std::string> shown_name(volume::InodeId directory, const std::string& called);
  Result<volume::InodeId> make_directory(const std::string& path);
  Result<void> make_contents(const std::string& path);
  Result<u64> put_text(const std::string& path, const std::string& mode, const std::string& text);
  Result<std::string> get_text(const std::string& path, std::size_t size);

  // conformance_keys.cpp
  Outcome add(const Words& words), add_and_remove(const Words& words), remove(const Words& words),
      remove_all(const Words& words), status(const Words& words),
      status_elsewhere(const Words& words), same_key(const Words& words),
      other_key(const Words& words), add_until_error(const Words& words),
      policy(const Words& words), add_policy_put(const Words& words),
      get_policy(const Words& words), get_nonce(const Words& words), fresh(const Words& words),
      reopen(const Words& words), small_volume(const Words& words);
  Outcome remove(const Words& words, bool all_users);
  // conformance_bytes.cpp
  int ask(volume::Caller caller, u32 command, MutableBytes argument, Bytes raw_key = {},
          std::optional<volume::HandleId> handle = {});
  Result<crypto::KeyId> add_bytes(volume::Caller caller, const Heap& raw);
  Result<Removed> remove_bytes(const crypto::KeyId& id, bool all_users);
  Outcome status_bytes(const crypto::KeyId& id);
  Result<void> set_policy_bytes(volume::InodeId directory, const crypto::KeyId& id);
  Outcome get_policy_bytes(volume::InodeId inode, const crypto::KeyId& id);
  Outcome get_nonce_bytes(volume::InodeId inode);
  Outcome raw(const Words& words), v1(const Words& words);
  Outcome raw_add(const Words& words), raw_remove(const Words& words),
      raw_status(const Words& words);
  // conformance_files.cpp
  Outcome open(const Words& words), hold(const Words& words), close(const Words& words),
      open_in(const Words& words), put(const Words& words), overwrite(const Words& words),
      get(const Words& words), get_filled(const Words& words), read(const Words& words),
      write(const Words& words), append(const Words& words), fill(const Words& words),
      truncate(const Words& words), truncate_path(const Words& words), allocate(const Words& words),
      fsync(const Words& words), fstat(const Words& words), write_until_error(const Words& words),
      fsync_directory(const Words& words);
  // conformance_names.cpp
  Outcome stat(const Words& words), list(const Words& words), readlink(const Words& words),
      mkdir(const Words& words), rmdir(const Words& words), unlink(const Words& words),
      unlink_in(const Words& words), unlink_either(const Words& words),
      remove_tree(const Words& words), mkfifo(const Words& words), symlink(const Words& words),
      chmod(const Words& words), utimes(const Words& words), setxattr(const Words& words),
      rename(const Words& words), exchange(const Words& words), link(const Words& words),
      link_handle(const Words& words), keep_name(const Words& words);
  // conformance_races.cpp
  Outcome race_writer(const Words& words), race_claims(const Words& words),
      race_told(const Words& words), race_size(const Words& words),
      race_content(const Words& words), race_users(const Words& words);

  const Setting setting_;
  const Door door_;
  volume::Caller caller_;  // of the operation under way
  std::unique_ptr<SimDevice> device_;
  std::unique_ptr<volume::Volume> volume_;
  u64 keys_made_ = 0;
  std::map<std::string, Key> keys_;
  std::map<std::string, volume::HandleId> handles_;
  std::map<std::string, volume::InodeId> called_;  // by the names they were made with
  std::map<std::string, std::string> kept_names_;
  std::map<std::string, std::string> told_;  // by the races
  u32 raw_flags_ = 0;
  u64 race_appends_ = 0;
  u32 race_claims_ = 0;
};

std::string errno_name(int error);
inline std::string errno_name(const Error& error) { return errno_name(posix_errno(error)); }
// The number behind "name=", or `otherwise`.
u64 option(const std::vector<std::string>& words, std::string_view name, u64 otherwise);
std::string status_text(std::string_view state, bool added_by_self, u32 user_count);

template <class T>
Outcome outcome_of(const Result<T>& result) {
  return {result ? "0" : errno_name(result.error())};
}
inline Outcome count_outcome(const Result<u64>& result) {
  if (!result || *result == 0) return outcome_of(result);
  return {"n=" + std::to_string(*result)};
}

}  // namespace latchkey::tests
