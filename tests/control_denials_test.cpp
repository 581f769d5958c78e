// Goal: what a user may not do through the control socket is denied to him, and to him alone, and
// what no client of ours sends is refused and its connection closed. Method: a table of denials,
// each tried by root, by Ada, who has a claim on the key and owns the directory, and by Bob, who
// has neither; each cell is an answer that is known beforehand. Afterwards no descriptor is left
// over and the server serves.

#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "mount/control_key.h"
#include "tests/support/control_fixture.h"
#include "tests/support/control_messages.h"

namespace latchkey::tests {
namespace {

using keymgr::KeyState;
using keymgr::RemovalMode;
using mount::Request;
using mount::UniqueFd;
using mount::Verb;

using Message = std::vector<std::byte>;

// One row: what is tried, and what root, Ada and Bob must get.
struct Denial {
  std::string what;
  std::function<std::string()> attempt;
  std::array<std::string, 3> wanted;
};

class ControlDenials : public ControlTest {
 protected:
  static constexpr std::array<u32, 3> kUsers{0, kAda, kBob};

  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "three users need root";
    ControlTest::SetUp();
    id_ = vault();
    handle_ = open("/vault/open");
    of_ada_ = owned("ada", kAda);
    for (std::size_t i = 0; i < of_bob_.size(); ++i)
      of_bob_[i] = owned("bob" + std::to_string(i), kBob);
    full_ = owned("full", kAda);
    const auto inside = volume_->lookup(volume::kRootInode, "full");
    ASSERT_TRUE(inside && volume_->mkdir({kAda}, *inside, "something", 0755));
    put("/file", "not encrypted");
    ASSERT_TRUE(volume_->set_attributes(*resolve(*volume_, "/file"), {.uid = kAda}));
    file_ = pretend("file", *resolve(*volume_, "/file"), false);
  }
  void TearDown() override {
    if (volume_) close(handle_);
    ControlTest::TearDown();
  }

  std::string owned(const std::string& name, u32 uid) {
    const auto made = make_directory(*volume_, {uid}, "/" + name);
    EXPECT_TRUE(made);
    EXPECT_TRUE(volume_->set_attributes(*made, {.uid = uid}));
    return pretend(name, *made, true);
  }

  // As it is before each cell: Ada's claim on the key is the only one.
  void restore() {
    ASSERT_TRUE(volume_->add_key({kAda}, master_key(7)));
    for (const u32 other : {0U, kBob}) (void)volume_->remove_key({other}, id_, RemovalMode::soft);
    ASSERT_EQ(volume_->key_status({0}, id_).user_count, 1U);
  }

  // --- what is sent ------------------------------------------------------------------------------

  // The answer's error, and whether the connection was closed behind it.
  std::string exchange(const Message& message, const std::vector<int>& fds = {}) {
    mount::ControlClient caller = client();
    EXPECT_TRUE(send_with(caller.socket(), message, fds));
    mount::Answer answer;
    bool last = false;
    Message buffer(mount::kPartBytesMax);
    while (!last) {
      const ssize_t got = ::recv(caller.socket(), buffer.data(), buffer.size(), 0);
      if (got <= 0) return "closed";
      last = mount::decode_part(Bytes(buffer).first(static_cast<std::size_t>(got)), answer)
                 .value_or(true);
    }
    const std::string said = answer.done.error ? name_of(*answer.done.error) : "ok";
    // Closed or not: a request that anybody may make.
    Request again = about(Verb::key_list);
    return caller.ask(again) ? said : said + ", closed";
  }
  std::string asks(const Request& request, const std::vector<int>& fds = {}) {
    return exchange(mount::encode_request(request), fds);
  }
  std::string adds(u32 size, const std::vector<int>& fds) {
    Request request = about(Verb::key_add);
    request.key_bytes = size;
    return asks(request, fds);
  }
  std::string adds(u32 size, const UniqueFd& fd) { return adds(size, std::vector{fd.get()}); }
  std::string policy(Verb verb, const std::string& path, const crypto::KeyId& id) {
    const UniqueFd fd(::open(path.c_str(), O_PATH | O_CLOEXEC));
    return asks(about(verb, id), {fd.get()});
  }
  // A good request with one byte of it changed, or made longer or shorter.
  std::string bent(const Request& request, const std::function<void(Message&)>& bend) {
    Message message = mount::encode_request(request);
    bend(message);
    return exchange(message);
  }
  std::string bent_at(const Request& request, std::size_t at, u8 value) {
    return bent(request, [&](Message& message) { message.at(at) = std::byte{value}; });
  }

  static UniqueFd reopened(const UniqueFd& fd, int flags) {
    return UniqueFd(::open(("/proc/self/fd/" + std::to_string(fd.get())).c_str(), flags));
  }

  std::vector<Denial> claims();
  std::vector<Denial> policies();
  std::vector<Denial> descriptors();
  std::vector<Denial> key_memory();
  std::vector<Denial> messages();
  static std::string attempt_when_idle(const Denial& denial);
  void try_all(const std::vector<Denial>& table);

  crypto::KeyId id_, unknown_;
  volume::HandleId handle_{};
  std::string of_ada_, full_, file_;
  std::array<std::string, 3> of_bob_;
  std::size_t tried_ = 0;
  u32 rows_ = 0;
};

std::vector<Denial> ControlDenials::claims() {
  const auto removal = [this](const volume::RemovalRequest& request) {
    return [this, request] { return asks(removal_of(id_, request)); };
  };
  const auto status = [this] {
    auto answer = client().ask(about(Verb::key_status, id_));
    const volume::KeyReport& report = answer->keys.at(0);
    return std::string(keymgr::name_of(report.state)) + " " + std::to_string(report.user_count) +
           " " + std::to_string(report.holders.size());
  };
  const auto listed = [this] {
    return std::to_string(client().ask(about(Verb::key_list))->keys.size());
  };
  const std::string present = "present 1 1", absent = "absent 0 0";
  return {
      {"see state, users and holders of Ada's key", status, {present, present, absent}},
      {"see Ada's key in the list", listed, {"1", "1", "0"}},
      {"remove Ada's claim (soft)", removal({}), {"no_key", "ok", "no_key"}},
      {"remove it sealed", removal({.mode = RemovalMode::sealed}), {"no_key", "ok", "no_key"}},
      {"remove it safely", removal({.mode = RemovalMode::safe}), {"no_key", "busy", "no_key"}},
      {"remove it sync", removal({.mode = RemovalMode::sync}), {"no_key", "ok", "no_key"}},
      {"remove it freeze", removal({.mode = RemovalMode::freeze}), {"no_key", "ok", "no_key"}},
      {"remove it deny", removal({.mode = RemovalMode::deny}), {"no_key", "ok", "no_key"}},
      {"remove it hard", removal({.mode = RemovalMode::hard}), {"no_key", "ok", "no_key"}},
      {"suspend it", removal({.mode = RemovalMode::suspend}), {"no_key", "ok", "no_key"}},
      {"rehearse its removal", removal({.dry_run = true}), {"no_key", "ok", "no_key"}},
      {"remove every user's claim",
       removal({.all_users = true}),
       {"ok", "permission", "permission"}},
      {"rehearse that",
       removal({.all_users = true, .dry_run = true}),
       {"ok", "permission", "permission"}},
      {"remove every claim at a deadline",
       removal({.all_users = true, .wait = true, .deadline_ns = 1, .then = RemovalMode::hard}),
       {"ok", "permission", "permission"}},
      {"remove a key that nobody has",
       [this] { return asks(removal_of(unknown_)); },
       {"no_key", "no_key", "no_key"}},
  };
}

std::vector<Denial> ControlDenials::policies() {
  const std::string no = "permission", none = "no_key";
  const auto set = [this](const std::string& path, const crypto::KeyId& id) {
    return [this, path, id] { return policy(Verb::policy_set, path, id); };
  };
  const std::string outside = "cross_key, closed";
  return {
      {"encrypt Ada's directory under a key that nobody has",
       set(of_ada_, unknown_),
       {none, none, no}},
      {"encrypt Bob's directory under Ada's key",
       [this] { return policy(Verb::policy_set, of_bob_.at(tried_++), id_); },
       {"ok", no, none}},
      {"encrypt a directory with something in it", set(full_, id_), {"not_empty", "not_empty", no}},
      {"encrypt a file", set(file_, id_), {"not_dir", "not_dir", no}},
      {"encrypt a directory of another file system",
       set("/proc", id_),
       {outside, outside, outside}},
      {"ask for the policy of another file system",
       [this] { return policy(Verb::policy_get, "/proc", {}); },
       {outside, outside, outside}},
      {"ask for a policy without a descriptor",
       [this] { return asks(about(Verb::policy_get)); },
       {"malformed, closed", "malformed, closed", "malformed, closed"}},
      {"ask for a policy with two",
       [this] {
         const UniqueFd fd(::open(of_ada_.c_str(), O_PATH | O_CLOEXEC));
         return asks(about(Verb::policy_get), {fd.get(), fd.get()});
       },
       {"malformed, closed", "malformed, closed", "malformed, closed"}},
  };
}

std::vector<Denial> ControlDenials::descriptors() {
  const auto row = [](const std::string& what, std::function<std::string()> attempt,
                      const std::string& wanted) {
    return Denial{what, std::move(attempt), {wanted, wanted, wanted}};
  };
  const std::string bad = "invalid, closed", none = "malformed, closed";
  return {
      row(
          "give a key without a descriptor", [this] { return adds(64, std::vector<int>{}); }, none),
      row(
          "give it in two descriptors",
          [=, this] {
            const UniqueFd fd = sealed_memory(64);
            return adds(64, {fd.get(), fd.get()});
          },
          none),
      row(
          "give it in a file",
          [this] { return adds(64, UniqueFd(::open(file_.c_str(), O_RDONLY | O_CLOEXEC))); }, bad),
      row(
          "give it in a directory",
          [this] { return adds(64, UniqueFd(::open("/proc", O_RDONLY | O_CLOEXEC))); }, bad),
      row(
          "give it in a pipe",
          [this] {
            std::array<int, 2> ends{};
            EXPECT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
            const UniqueFd out(ends[0]), in(ends[1]);
            return adds(64, out);
          },
          bad),
      row(
          "give it in a socket",
          [this] { return adds(64, UniqueFd(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0))); },
          bad),
      row(
          "give it in an epoll",
          [this] { return adds(64, UniqueFd(::epoll_create1(EPOLL_CLOEXEC))); }, bad),
      row(
          "give it in /dev/zero",
          [this] { return adds(64, UniqueFd(::open("/dev/zero", O_RDONLY | O_CLOEXEC))); }, bad),
  };
}

std::vector<Denial> ControlDenials::key_memory() {
  const auto row = [](const std::string& what, std::function<std::string()> attempt,
                      const std::string& wanted = "invalid, closed") {
    return Denial{what, std::move(attempt), {wanted, wanted, wanted}};
  };
  const auto secret = [](std::size_t size) {
    UniqueFd fd(static_cast<int>(::syscall(SYS_memfd_secret, O_CLOEXEC)));
    EXPECT_TRUE(!fd || size == 0 || ::ftruncate(fd.get(), static_cast<off_t>(size)) == 0);
    return fd ? std::move(fd) : sealed_memory(size);
  };
  return {
      row("give it in a memfd that is not sealed", [this] { return adds(64, memory_file(64, 0)); }),
      row("give it in a memfd that can be written",
          [this] { return adds(64, memory_file(64, F_SEAL_SHRINK | F_SEAL_GROW)); }),
      row("give it in a memfd that can be cut",
          [this] { return adds(64, memory_file(64, F_SEAL_WRITE | F_SEAL_GROW)); }),
      row("give a longer one than is said", [=, this] { return adds(32, secret(64)); }),
      row("give a shorter one than is said", [=, this] { return adds(64, secret(32)); }),
      row("give one of 15 bytes", [=, this] { return adds(15, secret(15)); }),
      row("give one of 65 bytes", [=, this] { return adds(65, secret(65)); }),
      row("give one of none", [=, this] { return adds(0, secret(0)); }),
      row("give one of 4 GiB", [=, this] { return adds(0xffffffff, secret(64)); }),
      row("give only the place of one",
          [=, this] { return adds(64, reopened(secret(64), O_PATH | O_CLOEXEC)); }),
      row(
          "ask for a status with a descriptor",
          [=, this] { return asks(about(Verb::key_status, id_), {sealed_memory(64).get()}); },
          "malformed, closed"),
      row(
          "remove a key with three descriptors",
          [=, this] { return asks(removal_of(id_), {0, 1, 2}); }, "malformed, closed"),
  };
}

std::vector<Denial> ControlDenials::messages() {
  const auto row = [](const std::string& what, std::function<std::string()> attempt,
                      const std::string& wanted = "malformed, closed") {
    return Denial{what, std::move(attempt), {wanted, wanted, wanted}};
  };
  const Request list = about(Verb::key_list), removal = removal_of(id_);
  const auto at = [this](const Request& request, std::size_t place, u8 value) {
    return [this, request, place, value] { return bent_at(request, place, value); };
  };
  return {
      row("send another magic", at(list, 0, 0)),
      row("speak version 2", at(list, 4, 2), "format_version, closed"),
      row("ask for verb 0", at(list, 6, 0)),
      row("ask for verb 8", at(list, 6, 8)),
      row("send an answer", at(list, 7, 0x80)),
      row("say that more follows", at(list, 12, 1)),
      row("say that 4 GiB follow", at(list, 15, 0xff)),
      row("send half a header", [=, this] { return bent(list, [](auto& m) { m.resize(8); }); }),
      row("send more than is said",
          [=, this] { return bent(list, [](auto& m) { m.resize(20); }); }),
      row("send 64 KiB", [=, this] { return bent(list, [](auto& m) { m.resize(65536); }); }),
      row("remove in mode 8", at(removal, 32, 8)),
      row("go on in mode 255", at(removal, 33, 255)),
      row("set a flag that there is not", at(removal, 34, 16)),
      row("fill a reserved byte", at(removal, 35, 1)),
      row("limit a wait that is none", at(removal, 40, 1)),
      row("set a deadline without its flag", at(removal, 48, 1)),
  };
}

// What the server closes it closes later, and of one user not many at once: not what is tried here.
std::string ControlDenials::attempt_when_idle(const Denial& denial) {
  for (int turn = 0;; ++turn) {
    std::string got = denial.attempt();
    if (got != "busy, closed" || turn == 1000) return got;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
}

void ControlDenials::try_all(const std::vector<Denial>& table) {
  for (const Denial& denial : table) {
    std::array<std::string, 3> got;
    for (std::size_t i = 0; i < kUsers.size(); ++i) {
      restore();
      as_user(kUsers[i], [&] { got[i] = attempt_when_idle(denial); });
      EXPECT_EQ(got[i], denial.wanted[i]) << denial.what << ", uid " << kUsers[i];
    }
    std::printf("| %2u | %-52s | %-22s | %-22s | %-22s |\n", ++rows_, denial.what.c_str(),
                got[0].c_str(), got[1].c_str(), got[2].c_str());
  }
}

// The fewest of half a second: the server closes what a client leaves behind after the client.
std::size_t open_descriptors() {
  std::size_t fewest = ~std::size_t{0};
  for (int i = 0; i < 50; ++i) {
    const std::filesystem::directory_iterator all("/proc/self/fd");
    fewest = std::min(fewest, static_cast<std::size_t>(std::distance(begin(all), end(all))));
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return fewest;
}

TEST_F(ControlDenials, each_is_denied_to_whom_it_must_be) {
  std::printf("|    | %-52s | %-22s | %-22s | %-22s |\n", "who tries to", "root", "Ada", "Bob");
  restore();
  EXPECT_EQ(ask_as(kAda, about(Verb::key_list)).keys.size(), 1U);
  const std::size_t before = open_descriptors();
  try_all(claims());
  try_all(policies());
  try_all(descriptors());
  try_all(key_memory());
  try_all(messages());
  EXPECT_GE(rows_, 40U);
  EXPECT_EQ(open_descriptors(), before) << "descriptors were kept";
  restore();
  EXPECT_EQ(status_as(kAda, id_).state, KeyState::present);
}

TEST_F(ControlDenials, a_user_has_so_many_connections_and_leaves_others_theirs) {
  mount::ControlOptions options;
  options.connections_max = 40;
  options.connections_of_root = 8;
  options.connections_per_user = 16;
  serve(options);
  std::vector<mount::ControlClient> held;
  const auto connect = [&](u32 uid, u32 count) {
    u32 served = 0;
    as_user(uid, [&] {
      for (u32 i = 0; i < count; ++i) {
        mount::ControlClient caller = client();
        if (caller.ask(about(Verb::key_list))) ++served;
        held.push_back(std::move(caller));
      }
    });
    return served;
  };
  EXPECT_EQ(connect(kAda, 30), 16U);
  EXPECT_EQ(connect(kBob, 30), 16U) << "Ada's are none of his";
  EXPECT_EQ(connect(1002, 4), 0U) << "the rest is root's";
  EXPECT_EQ(connect(0, 8), 8U);
  EXPECT_EQ(connect(0, 1), 0U);
  held.clear();
  for (int i = 0; i < 200 && server_->facts().connections != 0; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_EQ(connect(1002, 4), 4U) << "who has gone makes room";
}

}  // namespace
}  // namespace latchkey::tests
