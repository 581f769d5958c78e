// key add, status, list, remove; unlock, lock, status: of a mounted store, through its daemon.

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/hex.h"
#include "cli/control.h"
#include "cli/removal_report.h"
#include "cli/verbs.h"

namespace latchkey::cli {

namespace {

using keymgr::KeyState;
using mount::Verb;
using nlohmann::json;

mount::Request about(Verb verb, const crypto::KeyId& id = {}) {
  mount::Request request;
  request.verb = verb;
  request.id = id;
  return request;
}

// What a removal that was asked for in words came to.
struct Removed {
  volume::RemovalReport report;
  std::optional<Error> refused;
  mount::Answer answer;  // what the report's names are in
};

Result<Removed> remove_key(mount::ControlClient& daemon, const mount::Request& request) {
  LK_TRY(mount::Answer answer, daemon.ask(request));
  Removed removed;
  removed.answer = std::move(answer);
  removed.report = removed.answer.removal;
  removed.refused = error_in(removed.answer);
  return removed;
}

// Who is inside, or how long was waited for them: that is an answer, and not only an error.
bool is_answer(const Removed& removed) {
  return !removed.refused || removed.refused->code == Errc::busy ||
         removed.refused->code == Errc::timed_out;
}

Exit exit_of(const Removed& removed) {
  if (removed.refused) return exit_for(*removed.refused);
  if (removed.report.other_users) return Exit::other_users;
  return removed.report.state == KeyState::incompletely_removed ? Exit::files_busy : Exit::ok;
}

// Nothing to tell of a key that simply went.
void print_removed(const Common& common, const Removed& removed) {
  const volume::RemovalReport& report = removed.report;
  const bool plain = exit_of(removed) == Exit::ok && report.bytes_lost == 0 && !report.dry_run;
  if (!plain)
    fmt::print("{}", removal_table(report, removed.refused));
  else if (!common.quiet)
    fmt::print("{}: {}\n", to_hex(report.key_id.span()), keymgr::name_of(report.state));
}

mount::Request removal_request(const crypto::KeyId& id, const ControlArgs& args) {
  mount::Request request = about(Verb::key_remove, id);
  request.removal.mode = args.mode;
  request.removal.all_users = args.all_users;
  request.removal.dry_run = args.dry_run;
  request.removal.wait = args.wait_ns.has_value();
  request.wait_ns = args.wait_ns.value_or(kForever);
  request.removal.deadline_ns = args.deadline_ns;
  request.removal.then = args.then;
  return request;
}

Result<volume::KeyReport> status_of(mount::ControlClient& daemon, const crypto::KeyId& id) {
  LK_TRY(mount::Answer answer, ask(daemon, about(Verb::key_status, id)));
  if (answer.keys.size() != 1) return fail(Errc::malformed, "the daemon says nothing of the key");
  return std::move(answer.keys[0]);
}

Result<volume::KeyReport> add_key(mount::ControlClient& daemon, const KeySource& key) {
  LK_TRY(SecretBytes secret, read_key(key));
  LK_TRY(const mount::Answer added, daemon.add_key(std::move(secret)));
  if (added.done.error) {
    static std::string sentence;
    sentence = added.done.sentence;
    return std::unexpected(
        Error{*added.done.error, sentence.c_str(), kNowhere, added.done.os_errno});
  }
  return status_of(daemon, added.done.key_id);
}

Exit run_add(const Common& common, const ControlArgs& args, std::string_view said) {
  if (!args.key.given()) return report_usage(common, said, "needs --key-file or --key-fd");
  auto daemon = reach_daemon(args.directory);
  if (!daemon) return report_daemon(common, args.directory, daemon.error());
  auto added = add_key(*daemon, args.key);
  if (!added) return report_daemon(common, args.key.name(), added.error());
  if (common.json)
    print_json(common, describe_key(*added, false));
  else if (!common.quiet)
    fmt::print("{}\n", to_hex(added->key_id.span()));
  return Exit::ok;
}

void print_key(const volume::KeyReport& report) {
  fmt::print("{}  {}, {} {}{}\n", to_hex(report.key_id.span()), keymgr::name_of(report.state),
             report.user_count, report.user_count == 1 ? "user" : "users",
             report.added_by_self ? ", added by you" : "");
}

}  // namespace

Exit run_key_add(const Common& common, const ControlArgs& args) {
  return run_add(common, args, "key add");
}

Exit run_unlock(const Common& common, const ControlArgs& args) {
  return run_add(common, args, "unlock");
}

Exit run_key_status(const Common& common, const ControlArgs& args) {
  const auto id = key_named(args.key, args.key_id);
  if (!id) return report_daemon(common, "key status", id.error());
  auto daemon = reach_daemon(args.directory);
  if (!daemon) return report_daemon(common, args.directory, daemon.error());
  const auto report = status_of(*daemon, *id);
  if (!report) return report_daemon(common, args.directory, report.error());
  if (common.json) {
    print_json(common, describe_key(*report, true));
  } else {
    print_key(*report);
    fmt::print("{}", holders_table(report->holders));
  }
  return Exit::ok;
}

Exit run_key_list(const Common& common, const ControlArgs& args) {
  auto daemon = reach_daemon(args.directory);
  if (!daemon) return report_daemon(common, args.directory, daemon.error());
  const auto answer = ask(*daemon, about(Verb::key_list));
  if (!answer) return report_daemon(common, args.directory, answer.error());
  json keys = json::array();
  for (const volume::KeyReport& report : answer->keys) {
    keys.push_back(describe_key(report, false));
    if (!common.json) print_key(report);
  }
  if (common.json) print_json(common, {{"keys", keys}});
  return Exit::ok;
}

Exit run_key_remove(const Common& common, const ControlArgs& args) {
  const auto id = key_named(args.key, args.key_id);
  if (!id) return report_daemon(common, "key remove", id.error());
  auto daemon = reach_daemon(args.directory);
  if (!daemon) return report_daemon(common, args.directory, daemon.error());
  const auto removed = remove_key(*daemon, removal_request(*id, args));
  if (!removed) return report_daemon(common, args.directory, removed.error());
  if (!is_answer(*removed)) return report_daemon(common, to_hex(id->span()), *removed->refused);
  if (common.json)
    print_json(common, describe_removal(removed->report, removed->refused));
  else
    print_removed(common, *removed);
  return exit_of(*removed);
}

namespace {

// All keys of a store, each removed without waiting; then, together, whoever is to be waited for.
class Locking {
 public:
  Locking(const Common& common, const ControlArgs& args, mount::ControlClient& daemon)
      : common_(common), args_(args), daemon_(daemon), begun_ns_(system_env().monotonic_ns()) {}

  Result<void> run() {
    LK_TRY(const mount::Answer listed, ask(daemon_, about(Verb::key_list)));
    for (const volume::KeyReport& key : listed.keys) {
      if (!args_.all_users && key.user_count != 0 && !key.added_by_self) {
        Removed others;
        others.report.key_id = key.key_id;
        others.report.mode = args_.mode;
        others.report.state = key.state;
        others.report.other_users = true;
        all_.push_back(std::move(others));
        continue;
      }
      mount::Request request = removal_request(key.key_id, args_);
      request.removal.wait = false;
      LK_TRY(Removed removed, remove_key(daemon_, request));
      all_.push_back(std::move(removed));
    }
    if (!args_.wait_ns) return {};
    for (Removed& removed : all_) LK_TRYV(wait_for(removed));
    return {};
  }

  // The worst that any key met.
  Exit exit() const {
    Exit worst = Exit::ok;
    for (const Removed& removed : all_) {
      const Exit exit = exit_of(removed);
      const bool partial = exit == Exit::files_busy || exit == Exit::other_users;
      if (exit == Exit::ok || (partial && worst != Exit::ok && worst != Exit::other_users))
        continue;
      worst = exit;
    }
    return worst;
  }
  void print() const {
    json keys = json::array();
    for (const Removed& removed : all_) {
      if (common_.json)
        keys.push_back(describe_removal(removed.report, removed.refused));
      else
        print_removed(common_, removed);
    }
    if (common_.json) print_json(common_, {{"keys", keys}});
  }

 private:
  Result<void> wait_for(Removed& removed) {
    const Exit exit = exit_of(removed);
    if (exit != Exit::files_busy && exit != Exit::busy) return {};
    mount::Request request = removal_request(removed.report.key_id, args_);
    if (*args_.wait_ns != kForever) {
      const u64 passed = system_env().monotonic_ns() - begun_ns_;
      request.wait_ns = *args_.wait_ns > passed ? *args_.wait_ns - passed : 0;
    }
    LK_TRY(Removed waited, remove_key(daemon_, request));
    // Gone, or back again, before it was asked for a second time.
    if (waited.refused && waited.refused->code == Errc::no_key) {
      LK_TRY(const volume::KeyReport now, status_of(daemon_, removed.report.key_id));
      removed.report.state = now.state;
      removed.report.files_busy = false;
      removed.report.holders.clear();
      return {};
    }
    waited.report.bytes_flushed += removed.report.bytes_flushed;
    waited.report.bytes_lost += removed.report.bytes_lost;
    waited.report.files_lost += removed.report.files_lost;
    removed = std::move(waited);
    return {};
  }

  const Common& common_;
  const ControlArgs& args_;
  mount::ControlClient& daemon_;
  const u64 begun_ns_;
  std::vector<Removed> all_;
};

}  // namespace

Exit run_lock(const Common& common, const ControlArgs& args) {
  auto daemon = reach_daemon(args.directory);
  if (!daemon) return report_daemon(common, args.directory, daemon.error());
  Locking locking(common, args, *daemon);
  if (auto locked = locking.run(); !locked)
    return report_daemon(common, args.directory, locked.error());
  locking.print();
  return locking.exit();
}

Exit run_status(const Common& common, const ControlArgs& args) {
  auto daemon = reach_daemon(args.directory);
  if (!daemon) return report_daemon(common, args.directory, daemon.error());
  const auto answer = ask(*daemon, about(Verb::store));
  if (!answer) return report_daemon(common, args.directory, answer.error());
  const mount::StoreReport& store = answer->store;
  const auto listed = ask(*daemon, about(Verb::key_list));
  if (!listed) return report_daemon(common, args.directory, listed.error());
  constexpr u64 kBlock = 4096;
  json keys = json::array();
  for (const volume::KeyReport& report : listed->keys) keys.push_back(describe_key(report, false));
  if (common.json) {
    print_json(common, {{"mount", args.directory},
                        {"volume_id", to_hex(store.volume_id)},
                        {"label", store.label},
                        {"read_only", store.read_only},
                        {"generation", store.generation},
                        {"size_bytes", store.size_bytes},
                        {"total_bytes", store.blocks_total * kBlock},
                        {"available_bytes", store.blocks_available * kBlock},
                        {"dirty_bytes", store.dirty_bytes},
                        {"secrets", store.secret_memory ? "memfd_secret" : "locked"},
                        {"keys", keys}});
    return Exit::ok;
  }
  fmt::print("store     {}{}{}\n", to_hex(store.volume_id), store.label.empty() ? "" : ", ",
             printable(store.label));
  fmt::print("space     {} of {} available{}\n", format_bytes(store.blocks_available * kBlock),
             format_bytes(store.blocks_total * kBlock), store.read_only ? ", read-only" : "");
  fmt::print("dirty     {}\n", format_bytes(store.dirty_bytes));
  fmt::print("secrets   in {}\n", store.secret_memory ? "memfd_secret" : "locked pages");
  for (const volume::KeyReport& report : listed->keys) {
    fmt::print("key       ");
    print_key(report);
  }
  return Exit::ok;
}

}  // namespace latchkey::cli
