#include "tests/mounted/mounted_store.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>

#include "base/check.h"
#include "mount/control_client.h"

namespace latchkey::tests {

std::string why_no_mount() {
  if (::geteuid() != 0) return "a mount for several users needs root";
  const mount::UniqueFd fuse(::open("/dev/fuse", O_RDWR | O_CLOEXEC));
  return fuse ? "" : "there is no /dev/fuse";
}

int run_program(const std::vector<std::string>& words) {
  std::vector<char*> argv;
  argv.reserve(words.size() + 1);
  for (const std::string& word : words) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  LK_CHECK(::posix_spawn_file_actions_init(&actions) == 0);
  LK_CHECK(::posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDWR, 0) == 0);
  LK_CHECK(::posix_spawn_file_actions_adddup2(&actions, STDIN_FILENO, STDOUT_FILENO) == 0);
  pid_t pid = 0;
  LK_CHECK(::posix_spawnp(&pid, argv[0], &actions, nullptr, argv.data(), ::environ) == 0);
  ::posix_spawn_file_actions_destroy(&actions);
  int status = 0;
  LK_CHECK(::waitpid(pid, &status, 0) == pid);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

int run_latchkey(std::vector<std::string> words) {
  const char* const binary = std::getenv("LATCHKEY_BINARY");
  words.insert(words.begin(), binary != nullptr ? binary : "build/release/latchkey");
  return run_program(words);
}

MountedStore::MountedStore(std::string options, u64 bytes) : options_(std::move(options)) {
  LK_CHECK(::chmod(folder_.path().c_str(), 0755) == 0);
  LK_CHECK(::mkdir(root_.c_str(), 0755) == 0 && ::mkdir(connections_.c_str(), 0755) == 0);
  LK_CHECK(::mount("fusectl", connections_.c_str(), "fusectl", 0, nullptr) == 0);
  LK_CHECK(run_latchkey({"mkfs", "-q", "--size", std::to_string(bytes), image_}) == 0);
  mount();
  // Everybody makes names in the root directory.
  LK_CHECK(::chmod(root_.c_str(), 0777) == 0);
}

MountedStore::~MountedStore() {
  struct stat outside{};
  const bool mounted = ::stat(folder_.path().c_str(), &outside) == 0 && outside.st_dev != device();
  if (mounted && run_latchkey({"umount", root_}) != 0) ::umount2(root_.c_str(), MNT_DETACH);
  ::umount2(connections_.c_str(), MNT_DETACH);
}

dev_t MountedStore::device() const {
  struct stat facts{};
  LK_CHECK(::stat(root_.c_str(), &facts) == 0);
  return facts.st_dev;
}

void MountedStore::mount() {
  LK_CHECK_MSG(run_latchkey({"mount", "-o", options_, image_, root_}) == 0, "a store is mounted");
}

void MountedStore::umount() { LK_CHECK(run_latchkey({"umount", root_}) == 0); }

std::size_t MountedStore::handles() const {
  auto daemon = mount::ControlClient::connect(device());
  LK_CHECK(daemon.has_value());
  mount::Request request;
  request.verb = mount::Verb::key_list;
  const auto keys = daemon->ask(request);
  LK_CHECK(keys.has_value());
  std::size_t count = 0;
  for (const volume::KeyReport& key : keys->keys) {
    request.verb = mount::Verb::key_status;
    request.id = key.key_id;
    const auto status = daemon->ask(request);
    LK_CHECK(status.has_value() && status->keys.size() == 1);
    count += status->keys[0].holders.size();
  }
  return count;
}

std::size_t MountedStore::requests() const {
  std::ifstream in(connections_ + "/" + std::to_string(minor(device())) + "/waiting");
  std::size_t waiting = 0;
  LK_CHECK_MSG(static_cast<bool>(in >> waiting), "fusectl says how many requests wait");
  return waiting;
}

}  // namespace latchkey::tests
