// Words of the command line to the structs of verbs.h. The only file that includes CLI11.

#include <fcntl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <functional>
#include <new>
#include <sstream>
#include <system_error>

#include "base/secret.h"
#include "base/wait.h"
#include "cli/verbs.h"
#include "crypto/backends.h"
#include "crypto/xts.h"

namespace latchkey::cli {
namespace {

// Sizes as "4G" or "128K".
CLI::Option* add_size(CLI::App* app, const std::string& name, u64& value, const std::string& help) {
  return app->add_option_function<std::string>(
      name,
      [&value](const std::string& text) {
        auto parsed = parse_size(text);
        if (!parsed) throw CLI::ValidationError(text, parsed.error().what);
        value = *parsed;
      },
      help);
}

class CommandLine {
 public:
  CommandLine() : app_("encrypted copy-on-write store with a key for every extent", "latchkey") {
    app_.require_subcommand(1);
    app_.set_version_flag("--version", "latchkey 0.1.0");
    app_.fallthrough();
    app_.add_flag("--json", common_.json, "one JSON object on standard output");
    app_.add_flag("--discard", common_.discard, "tells the device which blocks become free");
    app_.add_flag("-q,--quiet", common_.quiet, "no progress");
    app_.add_option("--secrets", secrets_, "where secrets live: memfd_secret (default) or locked")
        ->check(CLI::IsMember({"memfd_secret", "locked"}));
    CLI::Option* backend =
        app_.add_option("--backend", backend_, "who encrypts: native (default), openssl or kcapi")
            ->check(CLI::IsMember({"native", "openssl", "kcapi"}));
    app_.add_option("--xts-kernel", kernel_, "force one of native's kernels (see info)")
        ->excludes(backend);
    add_store_verbs();
    add_key_verbs();
    add_path_verbs();
    add_subvolume_verbs();
    add_xattr_verbs();
    add_load_verbs();
    add_mount_verbs();
    add_control_verbs();
  }

  // An answer that could not be written is no success, and libraries that throw end here.
  int run_to_the_end(int argc, char** argv) {
    int exit = 0;
    std::error_code thrown;
    try {
      exit = run(argc, argv);
    } catch (const std::bad_alloc&) {
      return broken(common_.verb, Error{Errc::no_memory, "not enough memory"});
    } catch (const std::system_error& error) {
      thrown = error.code();
      if (std::ferror(stdout) == 0) {
        errno = thrown.value();
        return broken(common_.verb, host_error("failed"));
      }
    }
    errno = thrown.value();
    if (std::ferror(stdout) == 0 && std::fflush(stdout) == 0) return exit;
    common_.json = false;  // said where it can be heard
    return exit != 0 ? exit : broken("standard output", host_error("cannot be written"));
  }

 private:
  int broken(const std::string& subject, const Error& error) const {
    const Exit exit = report_error(common_, subject, error);
    return common_.verb == "check" ? kCheckCouldNotLook : static_cast<int>(exit);
  }

  int run(int argc, char** argv) {
    try {
      app_.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
      // Help and version are errors of that kind, too.
      if (error.get_exit_code() == 0) return app_.exit(error);
      return report_words(argc, argv, error.what());
    }
    common_.key_given = key_source_.given() || path_.key.given() || copy_.key.given() ||
                        subvolume_.key.given() || xattr_.key.given() || mount_.key.given();
    if (secrets_ == "locked") {
      if (auto forced = arena_force_locked(); !forced) return broken("--secrets", forced.error());
    }
    if (const std::string refusal = choose_ciphers(); !refusal.empty()) {
      const Exit exit =
          report_usage(common_, backend_.empty() ? "--xts-kernel" : "--backend", refusal);
      return common_.verb == "check" ? kCheckUsage : static_cast<int>(exit);
    }
    return work_();
  }

  // Why what was asked for cannot be; empty if it can.
  std::string choose_ciphers() const {
    if (!kernel_.empty()) {
      const crypto::BackendInfo native = crypto::probe_backends().front();
      if (std::ranges::find(native.kernels, kernel_, &crypto::KernelInfo::name) ==
          native.kernels.end())
        return "native has no such kernel (latchkey info lists them); --backend chooses another";
      if (!crypto::xts_force_kernel(kernel_)) return "this processor lacks its instructions";
    }
    if (backend_.empty() || crypto::use_backend(backend_)) return "";
    for (const crypto::BackendInfo& backend : crypto::probe_backends())
      if (backend.name == backend_) return "cannot be used here: " + backend.reason;
    return "there is no such backend";
  }

  // Words that make no sense: one line and, as parsing stopped somewhere, a second look at them
  // for --json and the verb.
  int report_words(int argc, char** argv, std::string sentence) const {
    Common common;
    const CLI::App* at = &app_;  // the verb or group so far
    std::string unknown;         // what stands in a verb's place and is none
    for (int i = 1; i < argc; ++i) {
      const std::string word = argv[i];
      if (word == "--json") {
        common.json = true;
      } else if (word.starts_with('-')) {
        if (takes_value(app_, word)) ++i;
      } else if (unknown.empty() && !below(*at).empty()) {
        const CLI::App* next = find_below(*at, word);
        if (next != nullptr) {
          at = next;
          common.verb += (common.verb.empty() ? "" : "_") + word;
        } else {
          unknown = word;
        }
      }
    }
    const bool check = common.verb == "check";
    std::string subject = common.verb.empty() ? "usage" : common.verb;
    std::ranges::replace(subject, '_', ' ');
    if (common.verb.empty()) common.verb = "usage";
    if (!unknown.empty()) sentence = "there is no verb '" + unknown + "'";
    const Exit exit = report_usage(common, subject, sentence + "; --help tells the forms");
    return check ? kCheckUsage : static_cast<int>(exit);
  }

  static std::vector<const CLI::App*> below(const CLI::App& app) {
    return app.get_subcommands([](const CLI::App*) { return true; });
  }

  static const CLI::App* find_below(const CLI::App& app, const std::string& word) {
    for (const CLI::App* sub : below(app))
      if (sub->get_name() == word) return sub;
    return nullptr;
  }

  // Whether an option of that name, of whatever verb, is followed by its value.
  static bool takes_value(const CLI::App& app, const std::string& name) {
    if (const CLI::Option* option = app.get_option_no_throw(name); option != nullptr)
      return option->get_items_expected_max() > 0;
    return std::ranges::any_of(below(app),
                               [&](const CLI::App* sub) { return takes_value(*sub, name); });
  }

  CLI::App* verb(CLI::App* parent, const std::string& word, const std::string& json_name,
                 const std::string& help, std::function<int()> work) {
    CLI::App* sub = parent->add_subcommand(word, help);
    sub->fallthrough();
    sub->callback([this, json_name, work = std::move(work)] {
      common_.verb = json_name;
      work_ = work;
    });
    return sub;
  }

  static void add_key(CLI::App* sub, KeySource& key) {
    CLI::Option* file =
        sub->add_option("--key-file", key.file, "raw key of 32 to 64 bytes; - is standard input");
    sub->add_option("--key-fd", key.fd, "read the raw key from this descriptor")->excludes(file);
  }

  template <class Run, class... Args>
  auto call(Run verb_function, const Args&... args) {
    return [this, verb_function, &args...] {
      return static_cast<int>(verb_function(common_, args...));
    };
  }

  void add_store_verbs() {
    CLI::App* sub = verb(&app_, "mkfs", "mkfs", "make an empty store", call(run_mkfs, mkfs_));
    sub->add_option("image", mkfs_.image, "device or image file")->required();
    add_size(sub, "--size", mkfs_.size, "make the image, or grow it, to this size");
    add_size(sub, "--extent", mkfs_.extent, "longest extent, 4K to 1M (default 128K)");
    add_size(sub, "--node", mkfs_.node, "bytes of a tree node (default 16K)");
    sub->add_option("--label", mkfs_.label, "a name for people");
    sub->add_flag("-f,--force", mkfs_.force, "overwrite whatever is recognised on it");

    sub = verb(&app_, "info", "info", "what the store and this machine are", call(run_info, info_));
    sub->add_option("image", info_.image, "device or image file");

    sub = verb(&app_, "check", "check", "verify the whole structure, offline",
               call(run_check, check_));
    sub->add_option("image", check_.image, "device or image file")->required();
    sub->add_flag("--data", check_.data, "read every data block too");
    sub->add_flag("--repair", check_.repair, "first mend what can be derived");

    sub = verb(&app_, "scrub", "scrub", "read and verify everything, mend what has a good twin",
               call(run_scrub, scrub_));
    sub->add_option("image", scrub_.image, "device or image file")->required();
    add_size(sub, "--rate", scrub_.rate, "read at most so many bytes a second (default: no limit)");
    sub->add_flag("--read-only", scrub_.read_only, "mend nothing");
    add_key(sub, scrub_.key);
  }

  void add_key_verbs() {
    CLI::App* key = app_.add_subcommand("key", "raw master keys");
    key->require_subcommand(1);
    key->fallthrough();
    CLI::App* sub =
        verb(key, "generate", "key_generate", "64 random bytes into a new file, mode 0600",
             call(run_key_generate, key_file_));
    sub->add_option("file", key_file_, "never overwritten")->required();
    sub = verb(key, "id", "key_id", "the key's identifier, 32 hex digits",
               call(run_key_id, key_source_));
    add_key(sub, key_source_);

    CLI::App* policy = app_.add_subcommand("policy", "encryption policies of directories");
    policy->require_subcommand(1);
    policy->fallthrough();
    sub = verb(policy, "set", "policy_set", "an empty directory becomes encrypted under the key",
               call(run_policy_set, path_));
    sub->add_option("target", path_.target,
                    "IMG:/directory, or one that is mounted; made if missing")
        ->required();
    add_key(sub, path_.key);
    sub->add_option("--key-id", path_.key_id, "where it is mounted: of a key that is present");
    sub = verb(policy, "get", "policy_get", "the identifier of the key that a file is under",
               call(run_policy_get, path_));
    sub->add_option("target", path_.target, "a path of a mounted store")->required();
  }

  // The verbs of a mounted store.
  void add_control_verbs() {
    CLI::App* key = app_.get_subcommand("key");
    const auto add = [&](CLI::App* parent, const std::string& word, const std::string& help,
                         auto work) {
      const std::string name = parent == key ? "key_" + word : word;
      CLI::App* sub = verb(parent, word, name, help, call(work, control_));
      sub->add_option("directory", control_.directory, "where the store is mounted")->required();
      return sub;
    };
    add_key(add(key, "add", "unlock what is under the key; prints its identifier", run_key_add),
            control_.key);
    CLI::App* sub = add(key, "status", "the key's state, and who is inside", run_key_status);
    add_key(sub, control_.key);
    add_key_id(sub);
    add(key, "list", "the keys that you may know of", run_key_list);
    sub = add(key, "remove", "take your claim away; see --mode", run_key_remove);
    add_key(sub, control_.key);
    add_key_id(sub);
    add_removal(sub);
    sub->add_flag("-n,--dry-run", control_.dry_run, "say what would be, and change nothing");
    add_deadline(sub);
    add_key(add(&app_, "unlock", "add a key to a mounted store", run_unlock), control_.key);
    add_removal(add(&app_, "lock", "remove every key of a mounted store", run_lock));
    add(&app_, "status", "a mounted store and its keys", run_status);
  }

  void add_key_id(CLI::App* sub) {
    sub->add_option("--key-id", control_.key_id, "its identifier, in place of the key");
  }

  void add_removal(CLI::App* sub) {
    sub->add_option_function<std::string>(
        "--mode", [this](const std::string& name) { control_.mode = mode_in(name); },
        "soft (default), sealed, safe, sync, freeze, deny, hard or suspend");
    sub->add_flag("--all-users", control_.all_users, "every user's claim (root)");
    // A flag: the word behind it is never its value.
    sub->add_flag(
           "--wait{forever}", wait_,
           "return when the key is absent; --wait=S: or when S seconds are over. Who interrupts it "
           "gives a safe removal up")
        ->each([this](const std::string& text) {
          control_.wait_ns = text == "forever" ? kForever : seconds_in(text);
        });
  }

  void add_deadline(CLI::App* sub) {
    sub->add_option_function<std::string>(
        "--deadline",
        [this](const std::string& text) {
          const std::size_t colon = text.find(':');
          control_.deadline_ns = seconds_in(text.substr(0, colon));
          if (colon != std::string::npos) control_.then = mode_in(text.substr(colon + 1));
        },
        "S or S:MODE: after S seconds the removal goes on in that mode (deny), also when this "
        "command has ended");
  }

  static keymgr::RemovalMode mode_in(const std::string& name) {
    const auto mode = keymgr::parse_removal_mode(name);
    if (!mode) throw CLI::ValidationError(name, "is no removal mode");
    return *mode;
  }

  // "2", "0.5"; in ns.
  static u64 seconds_in(const std::string& text) {
    double seconds = -1;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seconds);
    if (error != std::errc{} || end != text.data() + text.size() || !(seconds >= 0) ||
        seconds > 1e9)
      throw CLI::ValidationError(text, "is no number of seconds");
    return static_cast<u64>(seconds * 1e9);
  }

  void add_path_verbs() {
    CLI::App* sub = verb(&app_, "put", "put", "copy files into the store", call(run_put, copy_));
    add_copy(sub, "SRC", "IMG:/path");
    sub = verb(&app_, "get", "get", "copy files out of the store", call(run_get, copy_));
    add_copy(sub, "IMG:/path", "DST; - is standard output");

    sub = verb(&app_, "clone", "clone", "a file's blocks under a second file, metadata only",
               call(run_clone, copy_));
    sub->add_option("source", copy_.source, "IMG:/path")->required();
    sub->add_option("destination", copy_.destination, "IMG:/path, of the same image")->required();
    add_key(sub, copy_.key);

    sub = verb(&app_, "ls", "ls", "list a directory", call(run_ls, path_));
    sub->add_flag("-l", path_.detailed, "mode, owner, size, time");
    add_path(sub);
    sub = verb(&app_, "rm", "rm", "remove a name", call(run_rm, path_));
    sub->add_flag("-r,--recursive", path_.recursive, "and everything below it");
    add_path(sub);
    sub = verb(&app_, "map", "map", "where a file's data lies on the device", call(run_map, path_));
    add_path(sub);
  }

  void add_subvolume_verbs() {
    CLI::App* group = app_.add_subcommand("subvolume", "trees of files of their own");
    group->require_subcommand(1);
    group->fallthrough();
    CLI::App* sub = verb(group, "create", "subvolume_create", "an empty subvolume",
                         call(run_subvolume_create, subvolume_));
    sub->add_option("target", subvolume_.target, "IMG:/path")->required();
    add_key(sub, subvolume_.key);

    group = app_.add_subcommand("snapshot", "a subvolume as it is now; list, rm");
    group->fallthrough();
    group->require_subcommand(0, 1);
    // CLI11 calls a group back after the verb in it.
    group->callback([this, group] {
      if (!group->get_subcommands().empty()) return;
      common_.verb = "snapshot";
      work_ = call(run_snapshot_create, subvolume_);
    });
    group->add_flag("-r,--read-only", subvolume_.read_only, "nothing in it can be changed");
    group->add_option("source", subvolume_.target, "IMG:/path of a subvolume");
    group->add_option("destination", subvolume_.destination, "IMG:/path");
    add_key(group, subvolume_.key);
    sub = verb(group, "list", "snapshot_list", "all subvolumes and snapshots",
               call(run_snapshot_list, subvolume_));
    sub->add_option("image", subvolume_.image, "device or image file with a store")->required();
    add_key(sub, subvolume_.key);
    sub = verb(group, "rm", "snapshot_rm", "remove a snapshot or subvolume with all in it",
               call(run_snapshot_rm, subvolume_));
    sub->add_option("target", subvolume_.target, "IMG:/path")->required();
    add_key(sub, subvolume_.key);
  }

  void add_xattr_verbs() {
    CLI::App* group = app_.add_subcommand("xattr", "extended attributes of a file or directory");
    group->require_subcommand(1);
    group->fallthrough();
    const auto add = [&](const std::string& word, const std::string& help, auto work) {
      CLI::App* sub = verb(group, word, "xattr_" + word, help, call(work, xattr_));
      sub->add_option("target", xattr_.target, "IMG:/path")->required();
      if (word != "list") sub->add_option("name", xattr_.name, "such as user.note")->required();
      add_key(sub, xattr_.key);
      return sub;
    };
    add("list", "their names", run_xattr_list);
    add("get", "a value, as it is", run_xattr_get);
    add("set", "a value that is read from standard input", run_xattr_set)
        ->add_option("--value-file", xattr_.value_file, "or from this file");
    add("rm", "remove one", run_xattr_rm);
  }

  void add_copy(CLI::App* sub, const std::string& source, const std::string& destination) {
    sub->add_option("source", copy_.source, source)->required();
    sub->add_option("destination", copy_.destination, destination)->required();
    sub->add_flag(
        "-r,--recursive", copy_.recursive,
        "directories with all that is in them, links, owner (root), times and attributes");
    add_key(sub, copy_.key);
  }

  void add_path(CLI::App* sub) {
    sub->add_option("target", path_.target, "IMG:/path")->required();
    add_key(sub, path_.key);
  }

  void add_load_verbs() {
    CLI::App* sub =
        verb(&app_, "bench", "bench", "encrypted writeback beside the same engine in clear",
             call(run_bench, bench_));
    sub->add_option("image", bench_.image, "device or image file with a store")->required();
    add_size(sub, "--size", bench_.size, "bytes written in a round (default 1G)");
    // One word: a list would take the image that follows it for another size.
    sub->add_option_function<std::string>(
        "--extent",
        [this](const std::string& list) {
          bench_.extents.clear();
          std::istringstream texts(list);
          for (std::string text; std::getline(texts, text, ',');) {
            auto parsed = parse_size(text);
            if (!parsed) throw CLI::ValidationError(text, parsed.error().what);
            bench_.extents.push_back(*parsed);
          }
        },
        "extent sizes, separated by commas (default 128K)");
    sub->add_option("--rounds", bench_.rounds, "rounds of each side (default 5)");
    sub->add_option("--key-slots", bench_.key_slots, "readers' expanded keys that are kept")
        ->check(CLI::Range(64, 1 << 20));

    sub = verb(&app_, "torture", "torture", "remove the key while writers write, then count",
               call(run_torture, torture_));
    sub->add_option("image", torture_.image, "device or image file with a store")->required();
    sub->add_option("--mode", torture_.mode, "removal mode, or all of them (default soft)");
    sub->add_option("--seconds", torture_.seconds, "how long, each mode (default 30)");
    sub->add_option("--writers", torture_.writers, "threads (default 4)")
        ->check(CLI::Range(1, 256));
    sub->add_option("--seed", torture_.seed, "of all choices (default 1)");

    sub =
        verb(&app_, "session", "session", "hold a volume open and obey commands on standard input",
             call(run_session, session_));
    sub->add_option("image", session_.image, "device or image file with a store")->required();
    sub->add_option("--key-slots", session_.key_slots, "readers' expanded keys that are kept");
  }

  void add_mount_verbs() {
    CLI::App* sub = verb(&app_, "mount", "mount", "let every program use the store, at a directory",
                         call(run_mount, mount_));
    sub->add_option("image", mount_.image, "device or image file with a store")->required();
    sub->add_option("directory", mount_.directory, "where it appears")->required();
    sub->add_option("-o", mount_.options, "ro, allow_other, noatime, ...; separated by commas")
        ->allow_extra_args(false);
    sub->add_flag("-f,--foreground", mount_.foreground, "serve it in this process");
    add_key(sub, mount_.key);
    sub = verb(&app_, "umount", "umount", "take the mount away and close the store",
               call(run_umount, umount_));
    sub->add_option("directory", umount_.directory, "where it is mounted")->required();
    sub->add_flag("-l,--lazy", umount_.lazy, "now, though programs are inside");
  }

  CLI::App app_;
  Common common_;
  std::string secrets_;
  std::string backend_;
  std::string kernel_;
  std::function<int()> work_;
  MkfsArgs mkfs_;
  InfoArgs info_;
  CheckArgs check_;
  ScrubArgs scrub_;
  std::string key_file_;
  KeySource key_source_;
  PathArgs path_;
  CopyArgs copy_;
  SubvolumeArgs subvolume_;
  XattrArgs xattr_;
  BenchArgs bench_;
  TortureArgs torture_;
  SessionArgs session_;
  MountArgs mount_;
  UmountArgs umount_;
  ControlArgs control_;
  std::string wait_;  // what control_.wait_ns was told
};

// A store opened as descriptor 1 would be written to by what is printed. Each is held by a
// /dev/null that refuses what the descriptor is for, so that a closed one stays an error.
void hold_standard_descriptors() {
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
    if (::fcntl(fd, F_GETFD) < 0)
      (void)::open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY);
}

}  // namespace
}  // namespace latchkey::cli

int main(int argc, char** argv) {
  using namespace latchkey::cli;
  hold_standard_descriptors();
  return CommandLine().run_to_the_end(argc, argv);
}
