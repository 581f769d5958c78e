// Several processes at one key. The counts differ from run to run; what is told is what must not.

#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <random>

#include "base/check.h"
#include "tests/mounted/player.h"
#include "tests/support/conformance_world.h"

namespace latchkey::tests {
namespace {

constexpr u32 kRemovals = 300;
constexpr u32 kClaimsEach = 300;

// What a writer and who removes its key share.
struct Race {
  std::atomic<bool> stop;
  std::atomic<u64> closed, acknowledged, missing, failed, others;
};

Race& shared_race() {
  void* const at =
      ::mmap(nullptr, sizeof(Race), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  LK_CHECK(at != MAP_FAILED);
  return *new (at) Race{};
}

// Opens, creates if need be, appends one byte and closes, until told to stop. Whoever comes while
// the key is away is turned away.
void append_until_stopped(const std::string& path, Race& race) {
  while (!race.stop) {
    const int fd = ::open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0) {
      if (errno == ENOENT)
        ++race.missing;
      else if (errno != ENOKEY)
        ++race.others;
      continue;
    }
    ++(::write(fd, "a", 1) == 1 ? race.acknowledged : race.failed);
    if (::close(fd) != 0) ++race.failed;
    ++race.closed;
  }
}

}  // namespace

// Every fourth time the key stays until the writer was inside, so that it gets on.
Outcome Player::race_writer(const Words& words) {
  const Key& raced = key(words, 1);
  const std::string file = path(words.at(2));
  Race& race = shared_race();
  const pid_t writer = ::fork();
  if (writer == 0) {
    append_until_stopped(file, race);
    ::_exit(0);
  }
  u32 failed = 0;
  for (u32 i = 0; i < kRemovals; ++i) {
    const u64 before = race.closed;
    if (add_key(raced) != 0) ++failed;
    while (i % 4 == 0 && race.closed == before) ::sched_yield();
    if (remove_key(raced.id, false).error != 0) ++failed;
  }
  race.stop = true;
  LK_CHECK(::waitpid(writer, nullptr, 0) == writer);
  told_["removals"] = "failed=" + std::to_string(failed);
  told_["writer"] = "ENOENT=" + std::to_string(race.missing) +
                    " write_fail=" + std::to_string(race.failed) +
                    " other=" + std::to_string(race.others);
  race_appends_ = race.acknowledged;
  return {"0"};
}

// claim_at_random K seed=N: knows what it has claimed.
Outcome Player::claim_at_random(const Words& words) {
  const Key& raced = key(words.at(1));
  std::mt19937 random(static_cast<u32>(option(words, "seed", 0)));
  bool claimed = false;
  u32 failed = 0;
  for (u32 call = 0; call < kClaimsEach; ++call) {
    if ((random() & 1) == 0) {
      if (remove_key(raced.id, false).error == 0) claimed = false;
    } else if (add_key(raced) == 0) {
      claimed = true;
    } else {
      ++failed;
    }
  }
  return {std::to_string(failed), claimed ? "claimed" : ""};
}

Outcome Player::race_told(const Words& words) { return {"0", told_.at(words.at(1))}; }

Outcome Player::race_size(const Words& words) {
  struct stat facts{};
  const int done = ::lstat(path(words.at(1)).c_str(), &facts);
  const bool equal = done == 0 && static_cast<u64>(facts.st_size) == race_appends_;
  return {outcome_of_call(done).result, equal ? "equal=1" : "equal=0"};
}

Outcome Player::race_content(const Words& words) {
  const mount::UniqueFd fd(open_path(words.at(1), "r"));
  if (!fd) return outcome_of_call(-1);
  std::string text(race_appends_ + 1, '?');
  const ssize_t got = ::read(fd.get(), text.data(), text.size());
  if (got < 0) return outcome_of_call(got);
  text.resize(static_cast<std::size_t>(got));
  const auto bad = std::ranges::count_if(text, [](char c) { return c != 'a'; });
  return {"0", "bad_bytes=" + std::to_string(bad)};
}

// race_users K COUNT
Outcome Player::race_users(const Words& words) {
  const std::string detail = status_of(key(words.at(1)).id, root_).detail;
  return {"0", detail.ends_with("user_count=" + words.at(2)) ? "equal=1" : "equal=0"};
}

}  // namespace latchkey::tests
