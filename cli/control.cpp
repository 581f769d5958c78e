#include "cli/control.h"

#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/hex.h"
#include "base/secret_work.h"
#include "cli/removal_report.h"
#include "keymgr/keyring.h"

namespace latchkey::cli {

Result<mount::ControlClient> reach_daemon(const std::string& path) {
  struct stat facts{};
  if (::stat(path.c_str(), &facts) != 0) return std::unexpected(host_error("cannot be looked at"));
  auto daemon = mount::ControlClient::connect(facts.st_dev);
  if (!daemon && daemon.error().code == Errc::not_found)
    return fail(Errc::wrong_device, "no store is mounted there, or its daemon is gone");
  return daemon;
}

std::optional<Error> error_in(const mount::Answer& answer) {
  if (!answer.done.error) return std::nullopt;
  return Error{*answer.done.error, answer.done.sentence.c_str(), kNowhere, answer.done.os_errno};
}

Result<mount::Answer> ask(mount::ControlClient& daemon, const mount::Request& request, int fd) {
  static mount::Answer refused;  // its sentence is what the error points to
  LK_TRY(mount::Answer answer, daemon.ask(request, fd));
  if (!answer.done.error) return answer;
  refused = std::move(answer);
  return std::unexpected(*error_in(refused));
}

Exit report_daemon(const Common& common, std::string_view subject, const Error& error) {
  return report_refusal(common, subject, describe(error), error.code);
}

namespace {

Result<SecretBytes> copy_of(const SecretBytes& secret) {
  LK_TRY(SecretBytes copy, SecretBytes::create(secret.bytes().size()));
  const SecretWork work;
  std::memcpy(copy.bytes().data(), secret.bytes().data(), copy.bytes().size());
  return copy;
}

}  // namespace

Result<crypto::KeyId> key_named(const KeySource& key, const std::string& hex, SecretBytes* kept) {
  if (key.given() != hex.empty())
    return fail(Errc::invalid, "one of --key-file, --key-fd and --key-id says which key");
  if (key.given()) {
    LK_TRY(SecretBytes secret, read_key(key));
    if (kept != nullptr) {
      LK_TRY(*kept, copy_of(secret));
    }
    return keymgr::Keyring::identify(std::move(secret));
  }
  crypto::KeyId id;
  if (!from_hex(hex, id.bytes)) return fail(Errc::invalid, "an identifier is 32 hex digits");
  return id;
}

nlohmann::json describe_key(const volume::KeyReport& report, bool with_holders) {
  nlohmann::json flags = nlohmann::json::array();
  if (!report.holders.empty()) flags.push_back("files-busy");
  if (report.user_count > (report.added_by_self ? 1U : 0U)) flags.push_back("other-users");
  if (report.added_by_self) flags.push_back("added-by-self");
  nlohmann::json out = {{"identifier", to_hex(report.key_id.span())},
                        {"state", keymgr::name_of(report.state)},
                        {"flags", flags},
                        {"user_count", report.user_count}};
  if (with_holders) out["holders"] = describe_holders(report.holders);
  return out;
}

}  // namespace latchkey::cli
