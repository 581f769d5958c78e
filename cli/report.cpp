#include "cli/report.h"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "engine/file_device.h"

namespace latchkey::cli {

Exit exit_for(const Error& error) {
  switch (error.code) {
    case Errc::io:
      return Exit::io;
    case Errc::damaged:
    case Errc::malformed:
      return Exit::integrity;
    case Errc::wrong_device:
      return Exit::wrong_device;
    case Errc::format_version:
      return Exit::format;
    case Errc::no_key:
      return Exit::no_key;
    case Errc::no_space:
    case Errc::quota:
      return Exit::no_space;
    case Errc::no_memory:
      return Exit::no_memory;
    case Errc::busy:
    case Errc::exists:
      return Exit::busy;
    case Errc::permission:
    case Errc::wrong_key:
    case Errc::read_only:
      return Exit::denied;
    case Errc::unavailable:
    case Errc::unsupported:
      return Exit::unavailable;
    case Errc::timed_out:
      return Exit::timed_out;
    default:
      return Exit::usage;
  }
}

void print_json(const Common& common, const nlohmann::json& body) {
  nlohmann::json object;
  object["__header"]["version"] = "1";
  object[common.verb] = body;
  // Names of files are bytes; what is not UTF-8 is replaced, never an exception.
  fmt::print("{}\n", object.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

std::string printable(std::string_view text) {
  std::string line;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f)
      line += fmt::format("\\x{:02x}", byte);
    else
      line += c;
  }
  return line;
}

namespace {

Exit say(const Common& common, std::string_view subject, const std::string& sentence, Exit exit,
         std::string_view code, int check_exit = kCheckCouldNotLook) {
  // Nowhere is left to tell that this cannot be told.
  const std::string line =
      fmt::format("latchkey: {}: {}\n", printable(subject), printable(sentence));
  (void)std::fwrite(line.data(), 1, line.size(), stderr);
  if (!common.json) return exit;
  const bool check = common.verb == "check";
  nlohmann::json body = {{"error",
                          {{"subject", subject},
                           {"message", sentence},
                           {"code", code},
                           {"exit", check ? check_exit : static_cast<int>(exit)}}}};
  if (check) {
    body["clean"] = false;
    body["errors"] = nlohmann::json::array({{{"what", sentence}, {"where", subject}}});
  }
  print_json(common, body);
  return exit;
}

// What to do about it, where a person may not know.
std::string_view advice_for(const Error& error) {
  switch (error.code) {
    case Errc::no_key:
      return "; --key-file gives the key";
    case Errc::wrong_key:
      return "; ls --json tells the identifier of the right one";
    case Errc::no_space:
      return error.os_errno == 0 ? "; remove something with rm, or make a larger store"
                                 : "; what the image or file lies on is full";
    case Errc::unavailable:
      return "; allow io_uring (kernel.io_uring_disabled, the container's seccomp profile)";
    case Errc::no_memory:
      if (error.os_errno == EMFILE) return "; raise the limit of open files (ulimit -n 1024)";
      return error.os_errno == 0 ? "" : "; raise the lock limit to 8 MiB (ulimit -l 8192)";
    case Errc::damaged:
    case Errc::malformed:
      return "; check tells what is damaged";
    default:
      return "";
  }
}

}  // namespace

Exit report_error(const Common& common, std::string_view subject, const Error& error) {
  if (error.code == Errc::no_key && common.key_given)
    return report_error(common, subject,
                        Error{Errc::wrong_key, "it is encrypted under another key than this one"});
  return say(common, subject, describe(error).append(advice_for(error)), exit_for(error),
             name_of(error.code));
}

Exit report_image(const Common& common, const std::string& image, const Error& error) {
  if (error.code != Errc::wrong_device) return report_error(common, image, error);
  std::string sentence = describe(error);
  if (const auto found = engine::foreign_signature(image); found && !found->empty())
    sentence += "; on it: " + *found;
  return say(common, image, sentence, exit_for(error), name_of(error.code));
}

Exit report_usage(const Common& common, std::string_view subject, std::string_view sentence) {
  return say(common, subject, std::string(sentence), Exit::usage, "usage", kCheckUsage);
}

Exit report_refusal(const Common& common, std::string_view subject, std::string_view sentence,
                    Errc code) {
  return say(common, subject, std::string(sentence), exit_for(Error{code}), name_of(code));
}

void warn_if_stepped_back(const std::string& image, bool stepped_back) {
  if (!stepped_back) return;
  fmt::print(stderr,
             "latchkey: {}: warning: the newest superblock set does not verify, so an older "
             "generation was opened; unless a commit was cut off, later writes are lost\n",
             printable(image));
}

nlohmann::json describe_slots(const keymgr::SlotCounters& slots) {
  return {{"capacity", slots.capacity},
          {"hits", slots.hits},
          {"misses", slots.misses},
          {"evictions", slots.evictions}};
}

Error host_error(const char* what) {
  const int number = errno;
  const auto code = [number] {
    switch (number) {
      case EACCES:
      case EPERM:
        return Errc::permission;
      case ENOENT:
        return Errc::not_found;
      case ENOTDIR:
        return Errc::not_dir;
      case EISDIR:
        return Errc::is_dir;
      case ENAMETOOLONG:
        return Errc::name_too_long;
      case ENOSPC:
      case EDQUOT:
        return Errc::no_space;
      case EROFS:
        return Errc::read_only;
      default:
        return Errc::io;
    }
  };
  return Error{code(), what, kNowhere, number};
}

Result<void> write_all(int fd, Bytes bytes, const char* what) {
  while (!bytes.empty()) {
    const ssize_t wrote = ::write(fd, bytes.data(), bytes.size());
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote < 0) return std::unexpected(host_error(what));
    bytes = bytes.subspan(static_cast<std::size_t>(wrote));
  }
  return {};
}

std::string rfc3339(u64 realtime_ns) {
  const auto seconds = static_cast<std::time_t>(realtime_ns / 1'000'000'000);
  return fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(seconds));
}

Progress::Progress(const Common& common, std::string label)
    : enabled_(!common.quiet),
      terminal_(::isatty(STDERR_FILENO) == 1),
      label_(std::move(label)),
      started_ns_(system_env().monotonic_ns()),
      drawn_ns_(started_ns_) {}

Progress::~Progress() { finish(); }

void Progress::update(u64 done, u64 total, std::string_view unit) {
  done_ = done;
  total_ = total;
  unit_ = unit;
  if (!enabled_) return;
  const u64 now = system_env().monotonic_ns();
  if (now - drawn_ns_ < (terminal_ ? 100'000'000U : 3'000'000'000U)) return;
  drawn_ns_ = now;
  draw(false);
}

void Progress::draw(bool last) {
  const double seconds = static_cast<double>(system_env().monotonic_ns() - started_ns_) / 1e9;
  std::string line = unit_ == "B" ? format_bytes(done_) : fmt::format("{} {}", done_, unit_);
  if (total_ != 0) {
    line += unit_ == "B" ? " of " + format_bytes(total_) : fmt::format(" of {}", total_);
    line += fmt::format(" ({} %)", done_ * 100 / total_);
  }
  if (unit_ == "B" && seconds > 0.1)
    line +=
        fmt::format(", {}/s", format_bytes(static_cast<u64>(static_cast<double>(done_) / seconds)));
  line = fmt::format("{}{}: {}{}", terminal_ ? "\r\033[K" : "", label_, line,
                     terminal_ && !last ? "" : "\n");
  (void)std::fwrite(line.data(), 1, line.size(), stderr);
  drawn_ = true;
}

void Progress::finish() {
  if (enabled_ && terminal_ && drawn_) draw(true);
  enabled_ = false;
}

}  // namespace latchkey::cli
