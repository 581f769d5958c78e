#pragma once
// What a verb says: one answer on standard output (human text, or one JSON object), errors and
// progress on standard error.

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "base/env.h"
#include "base/result.h"
#include "base/text.h"
#include "base/types.h"
#include "cli/exit_codes.h"
#include "keymgr/slots.h"

namespace latchkey::cli {

// Options that every verb has.
struct Common {
  bool json = false;
  bool quiet = false;
  bool discard = false;    // see volume::VolumeOptions
  bool key_given = false;  // then a locked directory means that it was the wrong key
  std::string verb;        // words joined by _: the member of the JSON object
};

// {"__header":{"version":"1"},VERB:body} and a newline.
void print_json(const Common& common, const nlohmann::json& body);
// "latchkey: SUBJECT: sentence" on standard error, and with --json an object with an `error`
// member; that of check always has its `clean` and `errors`, too.
Exit report_error(const Common& common, std::string_view subject, const Error& error);
// The same about an image or device: what is no store may be known as something else.
Exit report_image(const Common& common, const std::string& image, const Error& error);
Exit report_usage(const Common& common, std::string_view subject, std::string_view sentence);
Exit report_refusal(const Common& common, std::string_view subject, std::string_view sentence,
                    Errc code);
// One line on standard error where the store opened an older generation than it may have had
// (engine::StoreFacts::stepped_back); whatever is done goes on.
void warn_if_stepped_back(const std::string& image, bool stepped_back);
// What a system call on the host's files answered: errno.
Error host_error(const char* what);
// All of `bytes`, to a file of the host's or a pipe; `what` names the error.
Result<void> write_all(int fd, Bytes bytes, const char* what);

// Of volume facts: capacity, hits, misses, evictions.
nlohmann::json describe_slots(const keymgr::SlotCounters& slots);

// Names come from anywhere: without line breaks and a terminal's escape sequences ("\x0a").
std::string printable(std::string_view text);
std::string rfc3339(u64 realtime_ns);

// A line that says how far a long job is: redrawn on a terminal, else printed every few seconds.
class Progress {
 public:
  Progress(const Common& common, std::string label);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  void update(u64 done, u64 total, std::string_view unit);  // unit "B" prints bytes
  void finish();

 private:
  void draw(bool last);

  bool enabled_;
  bool terminal_;
  std::string label_;
  u64 started_ns_;
  u64 drawn_ns_ = 0;
  u64 done_ = 0;
  u64 total_ = 0;
  std::string unit_;
  bool drawn_ = false;
};

}  // namespace latchkey::cli
