#pragma once
// Does the operations of the conformance table (tests/support/conformance_world.h) on a mounted
// store by system calls, in a process of the user's; and those that a library cannot be asked for:
//
//   hold, open with MODE path: O_PATH          open_again H MODE: through /proc/self/fd
//   enter N PATH: as the working directory     map N PATH, store N TEXT: and msync
//   copy_program PATH, execute N PATH          inherit N PATH: a child has it, we do not
//   send N PATH: in flight in a socket         watch N PATH: inotify
//   ring N, register N PATH: io_uring's fixed file
//   bind N PATH, open_bound N NAME MODE; remount ro|rw, umount [lazy]
//   add_in_child K; unshare: as root of a user namespace; remove, remove_all K plain: without flags
//   end N: of what was begun under that name

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "mount/control_client.h"
#include "tests/support/conformance_table.h"
#include "tests/support/keys.h"

struct io_uring;

namespace latchkey::tests {

// How keys and policies are asked for: by the control socket, or by fscrypt's ioctls. What only
// bytes can say is always an ioctl.
enum class KeyDoor : u8 { socket, ioctls };

class Player {
 public:
  // `place`: a directory beside the store, for mounts.
  Player(std::string root, std::string place, KeyDoor door)
      : root_(std::move(root)), place_(std::move(place)), door_(door) {}
  Outcome run(const std::string& operation);

 private:
  using Words = std::vector<std::string>;
  using Verb = Outcome (Player::*)(const Words&);
  struct Key {
    Heap raw;
    crypto::KeyId id;
  };
  struct Removed {
    int error = 0;
    bool files_busy = false, other_users = false;
  };
  using Verbs = std::map<std::string_view, Verb>;
  static Verbs verbs_of_keys_and_files();
  static Verbs verbs_of_names_and_places();
  static const Verbs& verbs();

  std::string path(const std::string& in_store);
  std::string shown_name(const std::string& directory, const std::string& called) const;
  int open_path(const std::string& in_store, const std::string& mode);
  int handle(const std::string& name) const;
  void keep_until_end(const std::string& name, std::function<void()> end);
  Outcome write_text(const std::string& in_store, const std::string& mode, const std::string& text);

  // player_keys.cpp: 0 or an errno
  Key& key(const Words& words, std::size_t at);
  Key& key(const std::string& name, std::size_t size = 64, u64 seed = 0);
  int add_key(const Key& key);
  Removed remove_key(const crypto::KeyId& id, bool all_users);
  Outcome status_of(const crypto::KeyId& id, const std::string& root);
  int set_policy(const std::string& in_store, const crypto::KeyId& id);
  mount::ControlClient daemon(const std::string& root) const;
  Outcome add(const Words& words), add_and_remove(const Words& words), remove(const Words& words),
      remove_all(const Words& words), status(const Words& words),
      status_elsewhere(const Words& words), same_key(const Words& words),
      other_key(const Words& words), add_until_error(const Words& words),
      policy(const Words& words), add_policy_put(const Words& words),
      get_policy(const Words& words), fresh(const Words& words), add_in_child(const Words& words);
  // player_ioctls.cpp
  Outcome raw(const Words& words), v1(const Words& words), get_nonce(const Words& words);
  Outcome raw_add(const Words& words), raw_remove(const Words& words),
      raw_status(const Words& words);
  // player_files.cpp
  Outcome open(const Words& words), hold(const Words& words), close(const Words& words),
      where(const Words& words), open_in(const Words& words), put(const Words& words),
      overwrite(const Words& words), get(const Words& words), get_filled(const Words& words),
      read(const Words& words), write(const Words& words), append(const Words& words),
      fill(const Words& words), truncate(const Words& words), truncate_path(const Words& words),
      allocate(const Words& words), fsync(const Words& words), fstat(const Words& words),
      write_until_error(const Words& words), fsync_directory(const Words& words),
      open_again(const Words& words);
  // player_names.cpp
  Outcome stat(const Words& words), list(const Words& words), readlink(const Words& words),
      mkdir(const Words& words), rmdir(const Words& words), unlink(const Words& words),
      unlink_in(const Words& words), unlink_either(const Words& words),
      remove_tree(const Words& words), mkfifo(const Words& words), symlink(const Words& words),
      chmod(const Words& words), utimes(const Words& words), setxattr(const Words& words),
      rename(const Words& words), exchange(const Words& words), link(const Words& words),
      link_of(const Words& words), keep_name(const Words& words);
  // player_things.cpp
  Outcome enter(const Words& words), map(const Words& words), store(const Words& words),
      copy_program(const Words& words), execute(const Words& words), inherit(const Words& words),
      send(const Words& words), watch(const Words& words), ring(const Words& words),
      register_file(const Words& words), bind(const Words& words), open_bound(const Words& words),
      remount(const Words& words), umount(const Words& words), unshare(const Words& words),
      end(const Words& words);
  // player_races.cpp
  Outcome race_writer(const Words& words), claim_at_random(const Words& words),
      race_told(const Words& words), race_size(const Words& words),
      race_content(const Words& words), race_users(const Words& words);

  const std::string root_, place_;
  KeyDoor door_;
  std::map<std::string, Key> keys_;
  std::map<std::string, int> handles_;
  std::map<std::string, std::function<void()>> ends_;
  std::map<std::string, ino_t> called_;  // by the names they were made with
  std::map<std::string, std::string> kept_names_;
  struct Mapping {
    void* at = nullptr;
    std::size_t size = 0;
  };
  std::map<std::string, Mapping> mappings_;
  std::map<std::string, std::shared_ptr<io_uring>> rings_;
  std::map<std::string, std::string> told_;  // by the races
  u32 raw_flags_ = 0;
  u64 race_appends_ = 0;
};

// Of a system call that answers less than 0 and an errno.
Outcome outcome_of_call(i64 result);
// "n=<bytes>", or "0".
Outcome count_of_call(i64 result);
Outcome outcome_of_errno(int error);

}  // namespace latchkey::tests
