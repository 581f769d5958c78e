#pragma once
// A verb's conversation with the daemon of a mounted store.

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "cli/report.h"
#include "cli/target.h"
#include "mount/control_client.h"

namespace latchkey::cli {

// The daemon of the store in which `path` is. wrong_device: no store is mounted there.
Result<mount::ControlClient> reach_daemon(const std::string& path);

// The answer, or the daemon's error as an error. Its sentence lives until the next call.
Result<mount::Answer> ask(mount::ControlClient& daemon, const mount::Request& request, int fd = -1);
// The daemon's error, whose sentence lives as long as the answer.
std::optional<Error> error_in(const mount::Answer& answer);

// Says on standard error what a call answered, without the advice that is for verbs on images.
Exit report_daemon(const Common& common, std::string_view subject, const Error& error);

// From --key-file or --key-fd, or 32 hex digits. invalid: neither, or both. `kept` gets a copy of
// the key that was read.
Result<crypto::KeyId> key_named(const KeySource& key, const std::string& hex,
                                SecretBytes* kept = nullptr);

// {"identifier", "state", "flags", "user_count"}; and {"holders"}.
nlohmann::json describe_key(const volume::KeyReport& report, bool with_holders);

}  // namespace latchkey::cli
