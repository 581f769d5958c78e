// policy get, and policy set of a directory of a mounted store.

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <cerrno>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/hex.h"
#include "cli/control.h"
#include "cli/control_policy.h"

namespace latchkey::cli {

namespace {

using mount::Verb;

// What the daemon is told of a path: a descriptor that neither reads nor writes.
Result<mount::UniqueFd> descriptor_of(const std::string& path) {
  mount::UniqueFd fd(::open(path.c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC));
  if (!fd) return std::unexpected(host_error("cannot be opened"));
  return fd;
}

Result<void> set_policy(mount::ControlClient& daemon, const std::string& path,
                        const crypto::KeyId& id) {
  LK_TRY(const mount::UniqueFd directory, descriptor_of(path));
  mount::Request request;
  request.verb = Verb::policy_set;
  request.id = id;
  LK_TRYV(ask(daemon, request, directory.get()));
  return {};
}

Result<bool> has_claim(mount::ControlClient& daemon, const crypto::KeyId& id) {
  mount::Request request;
  request.verb = Verb::key_status;
  request.id = id;
  LK_TRY(const mount::Answer answer, ask(daemon, request));
  return answer.keys.size() == 1 && answer.keys[0].added_by_self;
}

std::string parent_of(const std::string& path) {
  return std::filesystem::absolute(path + "/..").lexically_normal().string();
}

// The key is there for this call alone, unless it was before.
Result<void> set_with_key(mount::ControlClient& daemon, const std::string& path,
                          const crypto::KeyId& id, SecretBytes&& secret) {
  LK_TRY(const bool claimed, has_claim(daemon, id));
  if (!claimed) {
    LK_TRY(const mount::Answer added, daemon.add_key(std::move(secret)));
    if (added.done.error) return fail(*added.done.error, "the key cannot be added");
  }
  auto set = set_policy(daemon, path, id);
  if (!claimed) {
    mount::Request removal;
    removal.verb = Verb::key_remove;
    removal.id = id;
    LK_TRY(const mount::Answer removed, daemon.ask(removal));
    if (set && removed.done.error)
      return fail(*removed.done.error, "the policy is set, but the key cannot be removed again");
  }
  return set;
}

}  // namespace

bool is_mounted_path(const std::string& target) {
  struct stat facts{};
  return !parse_target(target) || ::lstat(target.c_str(), &facts) == 0;
}

Exit set_mounted_policy(const Common& common, const std::string& path, const KeySource& key,
                        const std::string& key_id) {
  SecretBytes secret;
  const auto id = key_named(key, key_id, &secret);
  if (!id) return report_daemon(common, "policy set", id.error());
  // Nothing is made outside of a store.
  struct stat facts{};
  const bool is_there = ::lstat(path.c_str(), &facts) == 0;
  auto daemon = reach_daemon(is_there ? path : parent_of(path));
  if (!daemon && (daemon.error().code == Errc::wrong_device || !is_there))
    return report_usage(common, path, "is neither IMG:/directory nor in a mounted store");
  if (!daemon) return report_daemon(common, path, daemon.error());
  if (!is_there && ::mkdir(path.c_str(), 0777) != 0)
    return report_daemon(common, path, host_error("cannot be made"));
  const auto set = key.given() ? set_with_key(*daemon, path, *id, std::move(secret))
                               : set_policy(*daemon, path, *id);
  if (!set) return report_daemon(common, path, set.error());
  const std::string identifier = to_hex(id->span());
  if (common.json)
    print_json(common, {{"path", path}, {"identifier", identifier}});
  else if (!common.quiet)
    fmt::print("{}: encrypted under {}\n", printable(path), identifier);
  return Exit::ok;
}

Exit run_policy_get(const Common& common, const PathArgs& args) {
  auto file = descriptor_of(args.target);
  if (!file) return report_daemon(common, args.target, file.error());
  auto daemon = reach_daemon(args.target);
  if (!daemon) return report_daemon(common, args.target, daemon.error());
  mount::Request request;
  request.verb = Verb::policy_get;
  const auto answer = ask(*daemon, request, file->get());
  if (!answer) return report_daemon(common, args.target, answer.error());
  const std::string identifier = to_hex(answer->policy.id.span());
  if (common.json)
    print_json(common, {{"path", args.target},
                        {"identifier", identifier},
                        {"contents", "aes-256-xts"},
                        {"filenames", "aes-256-cts"},
                        {"locked", answer->policy.locked}});
  else
    fmt::print("{}\n", identifier);
  return Exit::ok;
}

}  // namespace latchkey::cli
