// Operations on open files.

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "tests/mounted/player.h"

namespace latchkey::tests {
namespace {

constexpr char kFill = 'd';

off_t number(const std::string& word) { return static_cast<off_t>(std::stoull(word)); }

std::string data_ok(const std::string& seen, const std::string& wanted) {
  return std::string("data_ok=") + (seen.starts_with(wanted) ? "1" : "0");
}

// What was written before an error.
ssize_t write_at(int fd, const std::string& text, off_t offset) {
  std::size_t done = 0;
  while (done < text.size()) {
    const ssize_t wrote =
        ::pwrite(fd, text.data() + done, text.size() - done, offset + static_cast<off_t>(done));
    if (wrote < 0) return done == 0 ? wrote : static_cast<ssize_t>(done);
    done += static_cast<std::size_t>(wrote);
  }
  return static_cast<ssize_t>(done);
}

// Up to the end of the file; less than 0 as pread says.
ssize_t read_at(int fd, std::string& text, off_t offset) {
  std::size_t done = 0;
  while (done < text.size()) {
    const ssize_t got =
        ::pread(fd, text.data() + done, text.size() - done, offset + static_cast<off_t>(done));
    if (got < 0) return got;
    if (got == 0) break;
    done += static_cast<std::size_t>(got);
  }
  text.resize(done);
  return static_cast<ssize_t>(done);
}

// What the call answers, if the close that follows has nothing to say.
template <class Call>
i64 and_close(int fd, const Call& call) {
  if (fd < 0) return fd;
  const i64 result = call(fd);
  const int error = errno;
  const int closed = ::close(fd);
  if (result >= 0 && closed < 0) return closed;
  errno = error;
  return result;
}

}  // namespace

Outcome Player::write_text(const std::string& in_store, const std::string& mode,
                           const std::string& text) {
  return count_of_call(
      and_close(open_path(in_store, mode), [&](int fd) { return write_at(fd, text, 0); }));
}

Outcome Player::put(const Words& words) { return write_text(words.at(1), "make", words.at(2)); }

Outcome Player::overwrite(const Words& words) { return write_text(words.at(1), "w", words.at(2)); }

Outcome Player::get(const Words& words) {
  std::string text(std::stoull(words.at(2)), '?');
  Outcome outcome = count_of_call(
      and_close(open_path(words.at(1), "r"), [&](int fd) { return read_at(fd, text, 0); }));
  if (outcome.result.starts_with("n=") && words.size() > 3)
    outcome.detail = data_ok(text, words[3]);
  return outcome;
}

Outcome Player::get_filled(const Words& words) {
  std::string text(std::size_t{2} << 20, '?');  // more than any file here has
  Outcome outcome = count_of_call(
      and_close(open_path(words.at(1), "r"), [&](int fd) { return read_at(fd, text, 0); }));
  const auto wrong = std::ranges::count_if(text, [](char c) { return c != kFill; });
  outcome.detail = "wrong_bytes=" + std::to_string(wrong);
  return outcome;
}

Outcome Player::read(const Words& words) {
  std::string text(std::stoull(words.at(3)), '?');
  const ssize_t got = read_at(handle(words.at(1)), text, number(words.at(2)));
  Outcome outcome = count_of_call(got);
  if (got >= 0 && words.size() > 4) outcome.detail = data_ok(text, words[4]);
  return outcome;
}

Outcome Player::write(const Words& words) {
  return count_of_call(write_at(handle(words.at(1)), words.at(3), number(words.at(2))));
}

Outcome Player::append(const Words& words) {
  return count_of_call(::write(handle(words.at(1)), words.at(2).data(), words[2].size()));
}

Outcome Player::fill(const Words& words) {
  const std::string text(std::stoull(words.at(3)), kFill);
  return count_of_call(write_at(handle(words.at(1)), text, number(words.at(2))));
}

Outcome Player::truncate(const Words& words) {
  return outcome_of_call(::ftruncate(handle(words.at(1)), number(words.at(2))));
}

Outcome Player::truncate_path(const Words& words) {
  return outcome_of_call(::truncate(path(words.at(1)).c_str(), number(words.at(2))));
}

Outcome Player::allocate(const Words& words) {
  return outcome_of_call(
      ::fallocate(handle(words.at(1)), 0, number(words.at(2)), number(words.at(3))));
}

Outcome Player::fsync(const Words& words) { return outcome_of_call(::fsync(handle(words.at(1)))); }

Outcome Player::fsync_directory(const Words& words) {
  return outcome_of_call(
      and_close(open_path(words.at(1), "directory"), [](int fd) { return ::fsync(fd); }));
}

Outcome Player::fstat(const Words& words) {
  struct stat facts{};
  return outcome_of_call(::fstat(handle(words.at(1)), &facts));
}

Outcome Player::write_until_error(const Words& words) {
  static constexpr std::size_t kPiece = std::size_t{1} << 20;
  static constexpr off_t kPiecesMax = 1024;
  const std::string zeros(kPiece, '\0');
  off_t at = 0;
  while (at < kPiecesMax * static_cast<off_t>(kPiece)) {
    const ssize_t wrote = ::pwrite(handle(words.at(1)), zeros.data(), zeros.size(), at);
    if (wrote < 0) return outcome_of_call(wrote);
    at += wrote;
  }
  return {"0"};
}

}  // namespace latchkey::tests
