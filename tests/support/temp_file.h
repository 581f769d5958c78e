#pragma once
// Folders and files for tests that go with the test, and where to put them.

#include <cstdlib>
#include <filesystem>
#include <string>
#include <utility>

#include "base/check.h"

namespace latchkey::tests {

// A new folder below `parent`, removed with everything in it.
class TempFolder {
 public:
  explicit TempFolder(const std::string& parent = disk_folder()) {
    std::string path = parent + "/latchkey_test_XXXXXX";
    LK_CHECK_MSG(::mkdtemp(path.data()) != nullptr, "a folder for test files");
    path_ = std::move(path);
  }
  ~TempFolder() {
    std::error_code error;
    std::filesystem::remove_all(path_, error);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  std::string file(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }

  // TMPDIR or /var/tmp, which is a disk on most machines.
  static std::string disk_folder() {
    const char* chosen = std::getenv("TMPDIR");
    return chosen != nullptr && *chosen != '\0' ? chosen : "/var/tmp";
  }
  // tmpfs on Linux.
  static std::string memory_folder() { return "/dev/shm"; }

 private:
  std::string path_;
};

}  // namespace latchkey::tests
