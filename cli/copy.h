#pragma once
// What put and get share: counts, and files that were left out or failed.

#include <sys/stat.h>

#include <string>
#include <vector>

#include "cli/attributes.h"
#include "cli/verbs.h"
#include "volume/paths.h"

namespace latchkey::cli {

struct CopyFailure {
  std::string name;
  Error error;
};

struct Skipped {
  std::string name;
  std::string_view why;
};

struct CopyReport {
  u64 files = 0;
  u64 directories = 0;
  u64 symlinks = 0;
  u64 hard_links = 0;  // further names of what was copied already
  u64 special = 0;     // fifos, sockets and devices
  u64 bytes = 0;
  std::vector<Skipped> skipped;
  std::vector<LeftAttribute> left_attributes;
  std::vector<CopyFailure> failed;  // sources that could not be read; each was told already
};

// The answer, and the exit code that the failures make: denied when one was not permitted.
Exit print_report(const Common& common, const CopyReport& report, std::string_view done);

// The image that holds the store is no file to copy from, and none to overwrite.
class ImageIdentity {
 public:
  explicit ImageIdentity(const std::string& image);
  // Errc::invalid when that is the image.
  Result<void> refuse(const struct stat& file) const;

 private:
  struct stat image_{};
};

// "/a/b" and "c" make "/a/b/c".
std::string join(const std::string& directory, const std::string& name);

}  // namespace latchkey::cli
