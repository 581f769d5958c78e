#include "tests/mounted/player.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <sstream>

#include "base/check.h"
#include "tests/support/conformance_world.h"

namespace latchkey::tests {
namespace {

std::vector<std::string> split(const std::string& text, char at) {
  std::vector<std::string> words;
  std::istringstream in(text);
  for (std::string word; std::getline(in, word, at);)
    if (!word.empty()) words.push_back(word);
  return words;
}

int flags_of(const std::string& mode) {
  static const std::map<std::string, int> kModes = {{"r", O_RDONLY},
                                                    {"w", O_WRONLY},
                                                    {"rw", O_RDWR},
                                                    {"append", O_RDWR | O_APPEND},
                                                    {"create", O_RDWR | O_CREAT | O_EXCL},
                                                    {"make", O_RDWR | O_CREAT},
                                                    {"unnamed", O_RDWR | O_TMPFILE},
                                                    {"directory", O_RDONLY | O_DIRECTORY},
                                                    {"path", O_PATH}};
  return kModes.at(mode) | O_CLOEXEC;
}

}  // namespace

Outcome outcome_of_errno(int error) { return {error == 0 ? "0" : errno_name(error)}; }

Outcome outcome_of_call(i64 result) { return outcome_of_errno(result < 0 ? errno : 0); }

Outcome count_of_call(i64 result) {
  if (result <= 0) return outcome_of_call(result);
  return {"n=" + std::to_string(result)};
}

Outcome Player::run(const std::string& operation) {
  const Words words = split(operation, ' ');
  const auto verb = verbs().find(words.at(0));
  LK_CHECK_MSG(verb != verbs().end(), "an operation of the table that is not there");
  return (this->*verb->second)(words);
}

// "@x" is the name under which `directory` lists what was made as x.
std::string Player::shown_name(const std::string& directory, const std::string& called) const {
  if (!called.starts_with('@')) return called;
  if (const auto kept = kept_names_.find(called); kept != kept_names_.end()) return kept->second;
  const ino_t wanted = called_.at(called.substr(1));
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    struct stat facts{};
    if (::lstat(entry.path().c_str(), &facts) == 0 && facts.st_ino == wanted)
      return entry.path().filename();
  }
  return called;
}

std::string Player::path(const std::string& in_store) {
  std::string found = root_;
  for (const std::string& word : split(in_store, '/')) found += "/" + shown_name(found, word);
  return found;
}

int Player::open_path(const std::string& in_store, const std::string& mode) {
  return ::open(path(in_store).c_str(), flags_of(mode), 0644);
}

int Player::handle(const std::string& name) const { return handles_.at(name); }

void Player::keep_until_end(const std::string& name, std::function<void()> end) {
  LK_CHECK(ends_.emplace(name, std::move(end)).second);
}

Outcome Player::end(const Words& words) {
  ends_.extract(words.at(1)).mapped()();
  return {"0"};
}

Outcome Player::open(const Words& words) {
  const int fd = open_path(words.at(1), words.at(2));
  return outcome_of_call(fd < 0 ? fd : ::close(fd));
}

Outcome Player::hold(const Words& words) {
  const int fd = open_path(words.at(2), words.at(3));
  if (fd >= 0) handles_[words.at(1)] = fd;
  return outcome_of_call(fd);
}

Outcome Player::close(const Words& words) { return outcome_of_call(::close(handle(words.at(1)))); }

// Where another process finds it.
Outcome Player::where(const Words& words) {
  return {"0", "/proc/" + std::to_string(::getpid()) + "/fd/" + std::to_string(handle(words[1]))};
}

Outcome Player::open_in(const Words& words) {
  const int fd = ::openat(handle(words.at(1)), words.at(2).c_str(), flags_of(words.at(3)), 0644);
  return outcome_of_call(fd < 0 ? fd : ::close(fd));
}

Outcome Player::open_again(const Words& words) {
  const std::string again = "/proc/self/fd/" + std::to_string(handle(words.at(1)));
  const int fd = ::open(again.c_str(), flags_of(words.at(2)));
  return outcome_of_call(fd < 0 ? fd : ::close(fd));
}

// Outside of the store, where something of it is mounted.
Outcome Player::open_bound(const Words& words) {
  const std::string below = place_ + "/" + words.at(1) + "/" + words.at(2);
  const int fd = ::open(below.c_str(), flags_of(words.at(3)));
  return outcome_of_call(fd < 0 ? fd : ::close(fd));
}

Player::Verbs Player::verbs_of_keys_and_files() {
  return {
      {"add", &Player::add},
      {"add_and_remove", &Player::add_and_remove},
      {"remove", &Player::remove},
      {"remove_all", &Player::remove_all},
      {"status", &Player::status},
      {"status_elsewhere", &Player::status_elsewhere},
      {"same_key", &Player::same_key},
      {"other_key", &Player::other_key},
      {"add_until_error", &Player::add_until_error},
      {"add_in_child", &Player::add_in_child},
      {"raw", &Player::raw},
      {"v1", &Player::v1},
      {"policy", &Player::policy},
      {"add_policy_put", &Player::add_policy_put},
      {"get_policy", &Player::get_policy},
      {"get_nonce", &Player::get_nonce},
      {"fresh", &Player::fresh},
      {"open", &Player::open},
      {"hold", &Player::hold},
      {"close", &Player::close},
      {"where", &Player::where},
      {"open_in", &Player::open_in},
      {"open_again", &Player::open_again},
      {"open_bound", &Player::open_bound},
      {"put", &Player::put},
      {"overwrite", &Player::overwrite},
      {"get", &Player::get},
      {"get_filled", &Player::get_filled},
      {"read", &Player::read},
      {"write", &Player::write},
      {"append", &Player::append},
      {"fill", &Player::fill},
      {"truncate", &Player::truncate},
      {"truncate_path", &Player::truncate_path},
      {"allocate", &Player::allocate},
      {"fsync", &Player::fsync},
      {"fsync_directory", &Player::fsync_directory},
      {"fstat", &Player::fstat},
      {"write_until_error", &Player::write_until_error},
  };
}

Player::Verbs Player::verbs_of_names_and_places() {
  return {
      {"stat", &Player::stat},
      {"list", &Player::list},
      {"readlink", &Player::readlink},
      {"mkdir", &Player::mkdir},
      {"rmdir", &Player::rmdir},
      {"unlink", &Player::unlink},
      {"unlink_in", &Player::unlink_in},
      {"unlink_either", &Player::unlink_either},
      {"remove_tree", &Player::remove_tree},
      {"mkfifo", &Player::mkfifo},
      {"symlink", &Player::symlink},
      {"chmod", &Player::chmod},
      {"utimes", &Player::utimes},
      {"setxattr", &Player::setxattr},
      {"rename", &Player::rename},
      {"exchange", &Player::exchange},
      {"link", &Player::link},
      {"link_of", &Player::link_of},
      {"keep_name", &Player::keep_name},
      {"enter", &Player::enter},
      {"map", &Player::map},
      {"store", &Player::store},
      {"copy_program", &Player::copy_program},
      {"execute", &Player::execute},
      {"inherit", &Player::inherit},
      {"send", &Player::send},
      {"watch", &Player::watch},
      {"ring", &Player::ring},
      {"register", &Player::register_file},
      {"bind", &Player::bind},
      {"remount", &Player::remount},
      {"umount", &Player::umount},
      {"unshare", &Player::unshare},
      {"end", &Player::end},
      {"race_writer", &Player::race_writer},
      {"claim_at_random", &Player::claim_at_random},
      {"race_told", &Player::race_told},
      {"race_size", &Player::race_size},
      {"race_content", &Player::race_content},
      {"race_users", &Player::race_users},
  };
}

const Player::Verbs& Player::verbs() {
  static const Verbs kVerbs = [] {
    Verbs all = verbs_of_keys_and_files();
    all.merge(verbs_of_names_and_places());
    return all;
  }();
  return kVerbs;
}

}  // namespace latchkey::tests
