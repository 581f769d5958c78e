#pragma once
// The verbs. main.cpp parses words into these structs (CLI11 stays there: it compiles slowly); each
// function does the work, speaks through report.h and returns the exit code.

#include <optional>
#include <string>
#include <vector>

#include "base/types.h"
#include "cli/report.h"
#include "cli/target.h"
#include "keymgr/removal_mode.h"

namespace latchkey::cli {

struct MkfsArgs {
  std::string image;
  u64 size = 0;        // 0: the image exists
  bool force = false;  // over anything recognised
  u64 extent = 128 * kKiB;
  u64 node = 16 * kKiB;
  std::string label;
};
Exit run_mkfs(const Common& common, const MkfsArgs& args);

struct InfoArgs {
  std::string image;  // may be empty: this machine only
};
Exit run_info(const Common& common, const InfoArgs& args);

struct CheckArgs {
  std::string image;
  bool data = false;  // read every data block too
  bool repair = false;
};
// fsck's bits: 0 clean, 1 errors corrected, 4 errors left, 8 could not look, 16 usage.
int run_check(const Common& common, const CheckArgs& args);

struct ScrubArgs {
  std::string image;
  KeySource key;  // only for the names in the report
  u64 rate = 0;   // bytes a second; 0: no limit
  bool read_only = false;
};
// integrity: there is damage that it could not mend.
Exit run_scrub(const Common& common, const ScrubArgs& args);

Exit run_key_generate(const Common& common, const std::string& file);
Exit run_key_id(const Common& common, const KeySource& key);

struct PathArgs {
  std::string target;  // IMG:/path; of policy get, and of set where it is mounted, a host's path
  KeySource key;
  std::string key_id;  // policy set: hex digits
  bool recursive = false;
  bool detailed = false;  // ls -l
};
Exit run_policy_set(const Common& common, const PathArgs& args);
Exit run_policy_get(const Common& common, const PathArgs& args);
Exit run_ls(const Common& common, const PathArgs& args);
Exit run_rm(const Common& common, const PathArgs& args);
Exit run_map(const Common& common, const PathArgs& args);

// Of the daemon of a mounted store.
struct ControlArgs {
  std::string directory;  // the mount point, or what is below it
  KeySource key;
  std::string key_id;  // hex digits
  keymgr::RemovalMode mode = keymgr::RemovalMode::soft;
  bool all_users = false;
  bool dry_run = false;
  std::optional<u64> wait_ns;  // kForever: until it is over
  std::optional<u64> deadline_ns;
  keymgr::RemovalMode then = keymgr::RemovalMode::deny;
};
Exit run_key_add(const Common& common, const ControlArgs& args);
Exit run_key_status(const Common& common, const ControlArgs& args);
Exit run_key_list(const Common& common, const ControlArgs& args);
// files_busy, other_users: it did what it may.
Exit run_key_remove(const Common& common, const ControlArgs& args);
Exit run_unlock(const Common& common, const ControlArgs& args);
Exit run_lock(const Common& common, const ControlArgs& args);  // every key of the store
Exit run_status(const Common& common, const ControlArgs& args);

struct SubvolumeArgs {
  std::string target;       // create, rm: IMG:/path; snapshot: what it is of
  std::string destination;  // snapshot: IMG:/path
  std::string image;        // list
  KeySource key;
  bool read_only = false;
};
Exit run_subvolume_create(const Common& common, const SubvolumeArgs& args);
Exit run_snapshot_create(const Common& common, const SubvolumeArgs& args);
Exit run_snapshot_list(const Common& common, const SubvolumeArgs& args);
Exit run_snapshot_rm(const Common& common, const SubvolumeArgs& args);

struct XattrArgs {
  std::string target;  // IMG:/path
  std::string name;
  std::string value_file = "-";  // set: standard input
  KeySource key;
};
Exit run_xattr_list(const Common& common, const XattrArgs& args);
Exit run_xattr_get(const Common& common, const XattrArgs& args);
Exit run_xattr_set(const Common& common, const XattrArgs& args);
Exit run_xattr_rm(const Common& common, const XattrArgs& args);

struct CopyArgs {
  std::string source;  // put: a path of the host; get: IMG:/path
  std::string destination;
  KeySource key;
  bool recursive = false;
};
Exit run_put(const Common& common, const CopyArgs& args);
Exit run_get(const Common& common, const CopyArgs& args);
Exit run_clone(const Common& common, const CopyArgs& args);  // both of the form IMG:/path

struct BenchArgs {
  std::string image;
  u64 size = 1 * kGiB;
  std::vector<u64> extents{128 * kKiB};
  u32 rounds = 5;
  u32 key_slots = volume::VolumeOptions{}.key_slots;
};
Exit run_bench(const Common& common, const BenchArgs& args);

struct TortureArgs {
  std::string image;
  std::string mode = "soft";  // or "all"
  u32 seconds = 30;           // each mode
  u32 writers = 4;
  u64 seed = 1;
};
Exit run_torture(const Common& common, const TortureArgs& args);

struct MountArgs {
  std::string image;
  std::string directory;
  std::vector<std::string> options;  // each as behind mount -o
  KeySource key;                     // added before the first request
  bool foreground = false;
};
// In the background, unless told otherwise: the answer comes when the mount works.
Exit run_mount(const Common& common, const MountArgs& args);

struct UmountArgs {
  std::string directory;
  bool lazy = false;
};
// Returns when the store is closed.
Exit run_umount(const Common& common, const UmountArgs& args);

struct SessionArgs {
  std::string image;
  u32 key_slots = 0;  // of readers; 0: as everywhere
};
// Holds a volume open and obeys commands on standard input (session.cpp lists them).
Exit run_session(const Common& common, const SessionArgs& args);

}  // namespace latchkey::cli
