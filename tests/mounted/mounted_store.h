#pragma once
// A store of its own, served at a directory by the real binary's daemon.

#include <sys/types.h>

#include <string>
#include <vector>

#include "base/types.h"
#include "tests/support/temp_file.h"

namespace latchkey::tests {

// Why nothing can be mounted here; empty where it can.
std::string why_no_mount();

// Its exit code. What it says on its output is dropped.
int run_program(const std::vector<std::string>& words);
int run_latchkey(std::vector<std::string> words);

class MountedStore {
 public:
  // `options` as `mount -o` has them. Who cannot make or mount it stops the process.
  MountedStore(std::string options, u64 bytes);
  ~MountedStore();  // unmounted, whoever is inside
  MountedStore(const MountedStore&) = delete;
  MountedStore& operator=(const MountedStore&) = delete;

  const std::string& root() const { return root_; }
  std::string beside(const std::string& name) const { return folder_.file(name); }  // not in it
  void mount();
  void umount();
  // Handles that are open on encrypted files and directories, as root is told of them.
  std::size_t handles() const;
  // That the kernel has made and the daemon has not answered, closes among them.
  std::size_t requests() const;

 private:
  dev_t device() const;

  const TempFolder folder_{TempFolder::memory_folder()};
  const std::string image_ = folder_.file("image");
  const std::string root_ = folder_.file("root");
  const std::string connections_ = folder_.file("connections");  // a mount of fusectl
  const std::string options_;
};

}  // namespace latchkey::tests
