// Goal: who has a file open is named though other processes cannot be looked at, and nobody is
// named who has not. Method: a folder that stands for /proc, in which the mappings of some
// processes are pipes that nobody writes to, so that whoever reads them waits; and real processes
// for what is said of openers.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>

#include "base/env.h"
#include "mount/holders.h"
#include "tests/support/temp_file.h"

namespace latchkey::tests {
namespace {

namespace fs = std::filesystem;

constexpr u64 kSecond = 1'000'000'000;

class Holders : public ::testing::Test {
 protected:
  void TearDown() override {
    for (const std::string& pipe : pipes_)  // whoever waits there goes on
      ::close(::open(pipe.c_str(), O_RDWR | O_CLOEXEC));
  }

  // A file, and its numbers.
  std::string file(const std::string& name) {
    const std::string at = folder_.file(name);
    std::ofstream(at) << name;
    return at;
  }
  static struct stat facts(const std::string& path) {
    struct stat out{};
    EXPECT_EQ(::stat(path.c_str(), &out), 0);
    return out;
  }
  void process(u32 pid, const std::string& opened, const std::string& mapped, bool hangs) {
    const fs::path at = fs::path(proc_) / std::to_string(pid);
    fs::create_directories(at / "fd");
    if (!opened.empty()) fs::create_symlink(opened, at / "fd" / "3");
    if (hangs) {
      pipes_.push_back(at / "maps");
      ASSERT_EQ(::mkfifo(pipes_.back().c_str(), 0600), 0);
    } else if (!mapped.empty()) {
      const struct stat of = facts(mapped);
      std::array<char, 64> numbers{};
      std::snprintf(numbers.data(), numbers.size(), "%02x:%02x %lu", major(of.st_dev),
                    minor(of.st_dev), static_cast<unsigned long>(of.st_ino));
      std::ofstream(at / "maps") << "7f0000000000-7f0000001000 r--s 00000000 " << numbers.data()
                                 << "    " << mapped << "\n";
    }
  }
  // Who is found: pids by the files' order.
  std::vector<std::vector<u32>> found(const std::vector<std::string>& files, u64 patience_ns) {
    std::set<u64> wanted;
    for (const std::string& each : files) wanted.insert(facts(each).st_ino);
    const auto users = mount::processes_with(facts(files.at(0)).st_dev, wanted, patience_ns, proc_);
    std::vector<std::vector<u32>> out;
    for (const std::string& each : files) {
      std::vector<u32>& pids = out.emplace_back();
      const auto at = users.find(facts(each).st_ino);
      if (at == users.end()) continue;
      for (const auto& [pid, path] : at->second) {
        pids.push_back(pid);
        EXPECT_EQ(path, each);
      }
    }
    return out;
  }

  TempFolder folder_{"/tmp"};
  const std::string proc_ = folder_.file("proc");
  std::vector<std::string> pipes_;
};

using Pids = std::vector<std::vector<u32>>;

TEST_F(Holders, a_process_that_cannot_be_looked_at_hides_no_other) {
  const std::vector files{file("a"), file("b"), file("c")};
  process(100, files[0], "", true);
  process(200, files[1], files[2], false);
  process(300, "", files[2], false);
  process(400, "", "", true);
  process(500, files[0], files[0], false);
  const Pids wanted{{100, 500}, {200}, {200, 300}};
  for (int i = 0; i < 20; ++i) EXPECT_EQ(found(files, kSecond), wanted) << i;
}

TEST_F(Holders, what_was_found_is_said_where_no_more_can_be_looked_at) {
  const std::vector files{file("a"), file("b")};
  for (u32 pid = 100; pid < 120; ++pid) process(pid, files[pid % 2], "", true);
  const Pids all = found(files, 10 * kSecond);
  EXPECT_EQ(all[0].size(), 10U);
  EXPECT_EQ(all[1].size(), 10U);
}

// A child that waits until it is killed.
class Child {
 public:
  Child() : pid_(::fork()) {
    if (pid_ != 0) return;
    for (;;) ::pause();
  }
  ~Child() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  u32 pid() const { return static_cast<u32>(pid_); }

 private:
  const pid_t pid_;
};

// Nobody has the file open, as for a handle that a message between processes carries.
volume::Holder named(u32 opener, u64 since_boot_ns) {
  std::vector<volume::Holder> holders(1);
  holders[0].pid = opener;
  holders[0].since_boot_ns = since_boot_ns;
  mount::name_processes(~u64{0}, {1}, holders);
  return holders[0];
}

TEST(HoldersOpener, is_named_while_it_is_the_one_that_opened) {
  const Child child;
  const volume::Holder holder = named(child.pid(), system_env().boottime_ns());
  EXPECT_EQ(holder.pid, child.pid());
  EXPECT_FALSE(holder.command.empty());
}

TEST(HoldersOpener, whose_number_another_process_has_is_not_named) {
  const u64 opened = system_env().boottime_ns();
  ::usleep(50'000);  // /proc has ticks of 10 ms
  const Child child;
  const volume::Holder holder = named(child.pid(), opened);
  EXPECT_EQ(holder.pid, 0U);
  EXPECT_EQ(holder.command, "");
}

TEST(HoldersOpener, of_whom_nothing_is_known_is_not_named) {
  const Child child;
  EXPECT_EQ(named(child.pid(), 0).pid, 0U);
}

}  // namespace
}  // namespace latchkey::tests
