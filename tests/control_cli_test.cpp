// Goal: the verbs of a mounted store say and answer what scripts rely on. Method: the real binary,
// run by users of three uids, beside a control server in this process on a real volume; its answers
// compared with what the volume says.

#include <sys/wait.h>

#include <array>
#include <chrono>
#include <future>
#include <nlohmann/json.hpp>

#include "base/hex.h"
#include "tests/support/control_fixture.h"

namespace latchkey::tests {
namespace {

using keymgr::KeyState;
using nlohmann::json;

struct Said {
  int exit = -1;
  std::string out, err;
};

class ControlCli : public ControlTest {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "users of several uids need root";
    ControlTest::SetUp();
    key_ = folder_.file("key");
    const mount::UniqueFd fd(::open(key_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
    const Heap raw(64, std::byte{7});
    ASSERT_EQ(::write(fd.get(), raw.data(), raw.size()), 64);
    id_ = needles_of(raw).id;
    hex_ = to_hex(id_.span());
  }

  static std::string read_all(int fd) {
    std::string text;
    std::array<char, 4096> piece;
    for (ssize_t got = 0; (got = ::read(fd, piece.data(), piece.size())) > 0;)
      text.append(piece.data(), static_cast<std::size_t>(got));
    return text;
  }

  // What the binary said to the user.
  Said run(u32 uid, std::vector<std::string> words) {
    const char* binary = std::getenv("LATCHKEY_BINARY");
    words.insert(words.begin(), binary != nullptr ? binary : "build/release/latchkey");
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    const std::string at = "LATCHKEY_SOCKET=" + path();
    std::array<int, 2> out{}, err{};
    EXPECT_EQ(::pipe2(out.data(), O_CLOEXEC), 0);
    EXPECT_EQ(::pipe2(err.data(), O_CLOEXEC), 0);
    const pid_t child = ::fork();
    if (child == 0) {
      ::dup2(out[1], STDOUT_FILENO);
      ::dup2(err[1], STDERR_FILENO);
      std::array<char*, 2> environment{const_cast<char*>(at.c_str()), nullptr};
      if (::setresgid(uid, uid, uid) == 0 && ::setresuid(uid, uid, uid) == 0)
        ::execve(argv[0], argv.data(), environment.data());
      ::_exit(127);
    }
    ::close(out[1]);
    ::close(err[1]);
    Said said;
    said.out = read_all(out[0]);
    said.err = read_all(err[0]);
    ::close(out[0]);
    ::close(err[0]);
    int status = 0;
    EXPECT_EQ(::waitpid(child, &status, 0), child);
    said.exit = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    const std::string raw(64, '\7');
    EXPECT_EQ((said.out + said.err).find(raw.substr(0, 16)), std::string::npos) << "key bytes";
    return said;
  }
  // The verb's member of a --json answer.
  json run_json(const std::string& verb, int exit, u32 uid, std::vector<std::string> words) {
    words.emplace_back("--json");
    const Said said = run(uid, std::move(words));
    EXPECT_EQ(said.exit, exit) << said.out << said.err;
    const json answer = json::parse(said.out, nullptr, false);
    EXPECT_TRUE(answer.is_object()) << said.out << said.err;
    if (!answer.is_object()) return {};
    EXPECT_EQ(answer["__header"]["version"], "1");
    return answer.value(verb, json{});
  }

  std::string key_, hex_;
  crypto::KeyId id_;
};

TEST_F(ControlCli, a_key_is_added_looked_at_and_removed) {
  const std::string dir = folder_.path();
  json added = run_json("key_add", 0, kAda, {"key", "add", "--key-file", key_, dir});
  EXPECT_EQ(added, json({{"identifier", hex_},
                         {"state", "present"},
                         {"flags", {"added-by-self"}},
                         {"user_count", 1}}));
  EXPECT_EQ(run(kBob, {"key", "add", "--key-file", key_, dir}).out, hex_ + "\n");
  EXPECT_EQ(state(id_), KeyState::present);

  json status = run_json("key_status", 0, kAda, {"key", "status", "--key-file", key_, dir});
  EXPECT_EQ(status["state"], "present");
  EXPECT_EQ(status["flags"], json({"other-users", "added-by-self"}));
  EXPECT_EQ(status["user_count"], 2);
  EXPECT_EQ(status["holders"], json::array());
  json list = run_json("key_list", 0, 0, {"key", "list", dir});
  ASSERT_EQ(list["keys"].size(), 1U);
  EXPECT_EQ(list["keys"][0]["identifier"], hex_);
  EXPECT_FALSE(list["keys"][0].contains("holders"));

  json removed = run_json("key_remove", 8, kAda, {"key", "remove", "--key-id", hex_, dir});
  EXPECT_EQ(removed["flags"], json({"other-users"}));
  EXPECT_EQ(removed["state"], "present");
  const Said last = run(kBob, {"key", "remove", "--key-file", key_, dir});
  EXPECT_EQ(last.exit, 0);
  EXPECT_EQ(last.out, hex_ + ": absent\n");
  EXPECT_EQ(run(kBob, {"key", "remove", "--key-file", key_, dir}).exit, 6);
  status = run_json("key_status", 0, kAda, {"key", "status", "--key-id", hex_, dir});
  EXPECT_EQ(status["state"], "absent");
}

TEST_F(ControlCli, who_is_inside_is_named_and_waited_for) {
  const std::string dir = folder_.path();
  vault();
  const volume::HandleId handle = open("/vault/open");
  append(handle, "text");
  const json holder_members = {"command", "dirty_bytes", "handle", "path", "pid", "since", "uid"};
  json busy =
      run_json("key_remove", 5, kAda, {"key", "remove", "--key-file", key_, "--mode", "safe", dir});
  ASSERT_EQ(busy["holders"].size(), 1U);
  json members = json::array();
  for (const auto& member : busy["holders"][0].items()) members.push_back(member.key());
  EXPECT_EQ(members, holder_members);
  EXPECT_EQ(busy["holders"][0]["path"], "/vault/open");
  EXPECT_EQ(busy["holders"][0]["uid"], kAda);
  EXPECT_EQ(busy["error"], "busy");
  EXPECT_EQ(state(id_), KeyState::present);

  json dry = run_json("key_remove", 7, kAda, {"key", "remove", "-n", "--key-id", hex_, dir});
  EXPECT_EQ(dry["dry_run"], true);
  EXPECT_EQ(state(id_), KeyState::present);
  json late =
      run_json("key_remove", 12, kAda, {"key", "remove", "--key-id", hex_, "--wait=0.05", dir});
  EXPECT_EQ(late["state"], "incompletely-removed");
  EXPECT_EQ(late["flags"], json({"files-busy"}));
  EXPECT_EQ(late["holders"].size(), 1U);
  const Said soft = run(kAda, {"lock", dir});
  EXPECT_EQ(soft.exit, 7) << soft.err;
  EXPECT_NE(soft.out.find("/vault/open"), std::string::npos) << soft.out;

  auto waiting = std::async(std::launch::async, [&] { return run(kAda, {"lock", "--wait", dir}); });
  EXPECT_EQ(waiting.wait_for(std::chrono::milliseconds(200)), std::future_status::timeout);
  close(handle);
  const Said waited = waiting.get();
  EXPECT_EQ(waited.exit, 0) << waited.out << waited.err;
  EXPECT_EQ(waited.out, hex_ + ": absent\n");
}

TEST_F(ControlCli, deadlines_and_modes_are_words) {
  const std::string dir = folder_.path();
  vault();
  const volume::HandleId handle = open("/vault/open");
  json removed =
      run_json("key_remove", 0, kAda,
               {"key", "remove", "--key-id", hex_, "--wait", "--deadline=0.05:hard", dir});
  EXPECT_EQ(removed["state"], "absent");
  EXPECT_EQ(removed["mode"], "hard");
  EXPECT_EQ(removed["files_lost"], 0);
  close(handle);
  using Words = std::vector<std::string>;
  for (const Words& wrong : {Words{"--mode", "softly"}, Words{"--deadline=x"}, Words{"--wait=-1"},
                             Words{"--deadline=1:softly"}, Words{"--key-file", key_}}) {
    Words words = {"key", "remove", "--key-id", hex_, dir};
    words.insert(words.end(), wrong.begin(), wrong.end());
    EXPECT_EQ(run(kAda, words).exit, 1) << wrong[0];
  }
  EXPECT_EQ(run(kAda, {"key", "remove", dir}).exit, 1) << "which key?";
  EXPECT_EQ(run(kAda, {"key", "status", "--key-id", "abc", dir}).exit, 1);
  EXPECT_EQ(run(kAda, {"key", "remove", "--key-id", hex_, "--all-users", dir}).exit, 2);
}

TEST_F(ControlCli, a_store_is_locked_whole_and_unlocked) {
  const std::string dir = folder_.path();
  EXPECT_EQ(run(kAda, {"unlock", "--key-file", key_, dir}).out, hex_ + "\n");
  ASSERT_TRUE(volume_->add_key({kBob}, master_key(9)));
  json status = run_json("status", 0, 0, {"status", dir});
  EXPECT_EQ(status["keys"].size(), 2U);
  EXPECT_EQ(status["mount"], dir);
  EXPECT_GT(status["available_bytes"], 0);
  json locked = run_json("lock", 0, kAda, {"lock", dir});
  ASSERT_EQ(locked["keys"].size(), 1U) << "others' are none of his";
  EXPECT_EQ(locked["keys"][0]["state"], "absent");
  locked = run_json("lock", 8, 0, {"lock", dir});
  ASSERT_EQ(locked["keys"].size(), 1U);
  EXPECT_EQ(locked["keys"][0]["state"], "present");
  EXPECT_EQ(run(0, {"lock", "--all-users", dir}).exit, 0);
  EXPECT_EQ(run_json("lock", 0, 0, {"lock", dir})["keys"], json::array());
}

TEST_F(ControlCli, a_policy_is_set_before_the_key_is_there) {
  const auto plain = make_directory(*volume_, {kAda}, "/plain");
  ASSERT_TRUE(plain);
  const std::string at = pretend("plain", *plain, true);
  EXPECT_EQ(run(0, {"policy", "get", at}).exit, 1) << "not encrypted";
  EXPECT_EQ(run(0, {"policy", "set", "--key-id", hex_, at}).exit, 6) << "it is not present";
  const json set = run_json("policy_set", 0, 0, {"policy", "set", "--key-file", key_, at});
  EXPECT_EQ(set["identifier"], hex_);
  EXPECT_EQ(volume_->stat(*plain)->key_id, id_);
  EXPECT_EQ(state(id_), KeyState::absent) << "it was there for the call alone";
  const json got = run_json("policy_get", 0, kBob, {"policy", "get", at});
  EXPECT_EQ(got["identifier"], hex_);
  EXPECT_EQ(got["contents"], "aes-256-xts");
  EXPECT_EQ(got["filenames"], "aes-256-cts");
  EXPECT_EQ(got["locked"], true);
  EXPECT_EQ(run(0, {"policy", "get", "/proc/self"}).exit, 1);
}

TEST_F(ControlCli, without_a_daemon_a_verb_says_so) {
  server_.reset();
  EXPECT_EQ(run(0, {"status", folder_.path()}).exit, 4);
  EXPECT_EQ(run(0, {"policy", "set", "--key-file", key_, folder_.file("new")}).exit, 1);
  struct stat facts{};
  EXPECT_NE(::lstat(folder_.file("new").c_str(), &facts), 0) << "nothing is made out of a store";
  EXPECT_EQ(run(0, {"key", "list", folder_.file("none")}).exit, 1);
}

}  // namespace
}  // namespace latchkey::tests
