// Operations on names and attributes.

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <filesystem>
#include <set>

#include "tests/mounted/player.h"

namespace latchkey::tests {
namespace {

std::string flag(std::string_view name, bool set) {
  return std::string(name) + (set ? "=1" : "=0");
}

}  // namespace

Outcome Player::stat(const Words& words) {
  static constexpr std::string_view kPlainLength = "plain_length=";
  struct stat facts{};
  Outcome outcome = outcome_of_call(::lstat(path(words.at(1)).c_str(), &facts));
  if (outcome.result != "0" || words.size() == 2) return outcome;
  const std::string& what = words[2];
  if (what == "size") outcome.detail = "size=" + std::to_string(facts.st_size);
  if (what.starts_with(kPlainLength))
    outcome.detail =
        flag("plain_length", facts.st_size == std::stoll(what.substr(kPlainLength.size())));
  return outcome;
}

Outcome Player::list(const Words& words) {
  std::error_code error;
  std::set<std::string> names;
  std::filesystem::directory_iterator at(path(words.at(1)), error);
  for (; !error && at != std::filesystem::directory_iterator(); at.increment(error))
    names.insert(at->path().filename());
  Outcome outcome = outcome_of_errno(error.value());
  if (error) return outcome;
  for (std::size_t i = 2; i < words.size(); ++i) {
    if (i > 2) outcome.detail += ' ';
    outcome.detail += words[i] == "count" ? "entries=" + std::to_string(names.size())
                                          : flag(words[i], names.contains(words[i]));
  }
  return outcome;
}

Outcome Player::readlink(const Words& words) {
  std::array<char, PATH_MAX> target{};
  const ssize_t got = ::readlink(path(words.at(1)).c_str(), target.data(), target.size());
  Outcome outcome = outcome_of_call(got);
  if (got >= 0)
    outcome.detail = flag(
        "plain", std::string_view(target.data(), static_cast<std::size_t>(got)) == words.at(2));
  return outcome;
}

Outcome Player::mkdir(const Words& words) {
  return outcome_of_call(::mkdir(path(words.at(1)).c_str(), 0777));
}

Outcome Player::rmdir(const Words& words) {
  return outcome_of_call(::rmdir(path(words.at(1)).c_str()));
}

Outcome Player::unlink(const Words& words) {
  return outcome_of_call(::unlink(path(words.at(1)).c_str()));
}

Outcome Player::unlink_in(const Words& words) {
  return outcome_of_call(::unlinkat(handle(words.at(1)), words.at(2).c_str(), 0));
}

Outcome Player::unlink_either(const Words& words) {
  const Outcome first = unlink({words.at(0), words.at(1)});
  return first.result == "0" ? first : unlink({words.at(0), words.at(2)});
}

Outcome Player::remove_tree(const Words& words) {
  std::error_code error;
  std::filesystem::remove_all(path(words.at(1)), error);
  return outcome_of_errno(error.value());
}

Outcome Player::mkfifo(const Words& words) {
  return outcome_of_call(::mkfifo(path(words.at(1)).c_str(), 0666));
}

Outcome Player::symlink(const Words& words) {
  return outcome_of_call(::symlink(words.at(1).c_str(), path(words.at(2)).c_str()));
}

Outcome Player::chmod(const Words& words) {
  const auto mode = static_cast<mode_t>(std::stoul(words.at(2), nullptr, 8));
  return outcome_of_call(::chmod(path(words.at(1)).c_str(), mode));
}

Outcome Player::utimes(const Words& words) {
  const std::array<timespec, 2> times{};
  return outcome_of_call(::utimensat(AT_FDCWD, path(words.at(1)).c_str(), times.data(), 0));
}

Outcome Player::setxattr(const Words& words) {
  return outcome_of_call(::setxattr(path(words.at(1)).c_str(), words.at(2).c_str(),
                                    words.at(3).data(), words[3].size(), 0));
}

Outcome Player::rename(const Words& words) {
  return outcome_of_call(::rename(path(words.at(1)).c_str(), path(words.at(2)).c_str()));
}

Outcome Player::exchange(const Words& words) {
  return outcome_of_call(::renameat2(AT_FDCWD, path(words.at(1)).c_str(), AT_FDCWD,
                                     path(words.at(2)).c_str(), RENAME_EXCHANGE));
}

Outcome Player::link(const Words& words) {
  return outcome_of_call(::link(path(words.at(1)).c_str(), path(words.at(2)).c_str()));
}

// Of an open file of any process, which root may.
Outcome Player::link_of(const Words& words) {
  return outcome_of_call(::linkat(AT_FDCWD, words.at(1).c_str(), AT_FDCWD,
                                  path(words.at(2)).c_str(), AT_SYMLINK_FOLLOW));
}

Outcome Player::keep_name(const Words& words) {
  const std::string called = words.at(1).substr(words.at(1).rfind('/') + 1);
  const std::string name = path(words.at(1));
  kept_names_[called] = name.substr(name.rfind('/') + 1);
  return {"0"};
}

}  // namespace latchkey::tests
