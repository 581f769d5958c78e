// Goal: the control socket carries every verb of a key's life, for the uid that the kernel names,
// and no client can hold up another. Method: the server on a real volume, clients of three uids by
// threads that take them (needs root; else the caller's own uid alone), raw sockets for what no
// client of ours would send.

#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <array>
#include <chrono>
#include <csignal>
#include <cstring>
#include <future>

#include "mount/control_key.h"
#include "tests/support/control_fixture.h"

namespace latchkey::tests {
namespace {

using keymgr::KeyState;
using keymgr::RemovalMode;
using mount::Answer;
using mount::Verb;
using std::chrono_literals::operator""ms;
using std::chrono_literals::operator""s;

constexpr u64 kMillisecond = 1'000'000;

class Control : public ControlTest {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "clients of several uids need root";
    ControlTest::SetUp();
  }
};

TEST_F(Control, add_status_list_and_remove_are_the_peers_own) {
  const crypto::KeyId id = needles_of(Heap(64, std::byte{7})).id;
  EXPECT_EQ(status_as(kAda, id).state, KeyState::absent);
  const Answer added = add_as(kAda, 7);
  EXPECT_EQ(added.done.error, std::nullopt) << added.done.sentence;
  EXPECT_EQ(added.done.key_id, id);

  volume::KeyReport report = status_as(kAda, id);
  EXPECT_EQ(report.state, KeyState::present);
  EXPECT_TRUE(report.added_by_self);
  EXPECT_EQ(report.user_count, 1U);
  EXPECT_EQ(status_as(kBob, id).state, KeyState::absent) << "who has no claim is not told";
  EXPECT_TRUE(ask_as(kBob, about(Verb::key_list)).keys.empty());
  EXPECT_EQ(ask_as(kBob, removal_of(id)).done.error, Errc::no_key);
  EXPECT_EQ(ask_as(kBob, removal_of(id, {.all_users = true})).done.error, Errc::permission);

  add_as(kBob, 7);
  report = status_as(kBob, id);
  EXPECT_TRUE(report.added_by_self);
  EXPECT_EQ(report.user_count, 2U);
  const Answer listed = ask_as(0, about(Verb::key_list));
  ASSERT_EQ(listed.keys.size(), 1U);
  EXPECT_EQ(listed.keys[0].key_id, id);
  EXPECT_EQ(listed.keys[0].user_count, 2U);

  const Answer first = ask_as(kAda, removal_of(id));
  EXPECT_EQ(first.done.error, std::nullopt);
  EXPECT_TRUE(first.removal.other_users);
  EXPECT_EQ(first.removal.state, KeyState::present);
  const Answer second = ask_as(kBob, removal_of(id, {.mode = RemovalMode::deny}));
  EXPECT_EQ(second.removal.mode, RemovalMode::deny);
  EXPECT_EQ(second.removal.state, KeyState::absent);
  EXPECT_FALSE(second.removal.phases.empty());
  EXPECT_EQ(second.removal.phases.front().name, "door");
  EXPECT_EQ(status_as(0, id).state, KeyState::absent);
}

TEST_F(Control, a_key_is_wiped_where_it_came_from) {
  SecretBytes secret = master_key(7);
  auto key = mount::KeyDescriptor::create(secret);
  ASSERT_TRUE(key) << key.error().what;
  EXPECT_EQ(key->is_secret_memory(), arena_status().kind == ArenaKind::memfd_secret);
  EXPECT_EQ(std::memcmp(key->bytes().data(), secret.bytes().data(), 64), 0);
  mount::Request request = about(Verb::key_add);
  request.key_bytes = 64;
  auto answer = client().ask(request, key->fd());
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->done.error, std::nullopt) << answer->done.sentence;
  if (key->is_secret_memory()) {
    EXPECT_EQ(key->bytes()[0], std::byte{0}) << "by the daemon, in the client's own page";
  }
  key->wipe();
  EXPECT_EQ(std::memcmp(key->bytes().data(), Heap(64).data(), 64), 0);
  secret.reset();
  EXPECT_FALSE(arena_holds(Heap(64, std::byte{7}))) << "neither end has it any more";
}

TEST_F(Control, a_sealed_memfd_is_taken_where_the_client_has_no_secret_memory) {
  const mount::UniqueFd fd(::memfd_create("key", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  const Heap raw(64, std::byte{9});
  ASSERT_EQ(::write(fd.get(), raw.data(), raw.size()), 64);
  mount::Request request = about(Verb::key_add);
  request.key_bytes = 64;
  EXPECT_EQ(ask_as(0, request, fd.get()).done.error, Errc::invalid) << "not sealed";
  ASSERT_EQ(::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 0);
  EXPECT_EQ(ask_as(0, request, fd.get()).done.error, Errc::invalid) << "not sealed against writes";
  ASSERT_EQ(::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_WRITE), 0);
  const Answer added = ask_as(0, request, fd.get());
  EXPECT_EQ(added.done.error, std::nullopt) << added.done.sentence;
  EXPECT_EQ(added.done.key_id, needles_of(raw).id);
  request.key_bytes = 32;
  EXPECT_EQ(ask_as(0, request, fd.get()).done.error, Errc::invalid) << "it is longer than that";
}

TEST_F(Control, a_removal_that_waits_returns_with_the_last_close) {
  const crypto::KeyId id = vault();
  const volume::HandleId handle = open("/vault/open");
  auto waiting =
      std::async(std::launch::async, [&] { return ask_as(kAda, removal_of(id, {.wait = true})); });
  EXPECT_EQ(waiting.wait_for(100ms), std::future_status::timeout);
  EXPECT_EQ(status_as(kAda, id).state, KeyState::incompletely_removed);
  append(handle, "saved");
  close(handle);
  ASSERT_EQ(waiting.wait_for(10s), std::future_status::ready);
  const Answer answer = waiting.get();
  EXPECT_EQ(answer.done.error, std::nullopt) << answer.done.sentence;
  EXPECT_EQ(answer.removal.state, KeyState::absent);
  EXPECT_FALSE(answer.removal.files_busy);
  EXPECT_TRUE(answer.removal.holders.empty());
}

TEST_F(Control, a_removal_waits_no_longer_than_it_is_told_to) {
  const crypto::KeyId id = vault();
  const volume::HandleId handle = open("/vault/open");
  mount::Request request = removal_of(id, {.mode = RemovalMode::safe, .wait = true});
  request.wait_ns = 50 * kMillisecond;
  Answer answer = ask_as(kAda, request);
  EXPECT_EQ(answer.done.error, Errc::timed_out);
  EXPECT_EQ(status_as(kAda, id).state, KeyState::present);
  EXPECT_EQ(answer.removal.holders.size(), 1U);

  request = removal_of(id, {.wait = true});
  request.wait_ns = 50 * kMillisecond;
  answer = ask_as(kAda, request);
  EXPECT_EQ(answer.done.error, Errc::timed_out);
  EXPECT_EQ(answer.removal.state, KeyState::incompletely_removed);
  ASSERT_EQ(answer.removal.holders.size(), 1U);
  EXPECT_EQ(answer.removal.holders[0].path, "/vault/open");

  const volume::RemovalRequest deadline{
      .wait = true, .deadline_ns = 50 * kMillisecond, .then = RemovalMode::deny};
  answer = ask_as(kAda, removal_of(id, deadline));
  EXPECT_EQ(answer.done.error, std::nullopt) << answer.done.sentence;
  EXPECT_EQ(answer.removal.mode, RemovalMode::deny);
  EXPECT_EQ(answer.removal.state, KeyState::absent);
  EXPECT_EQ(read_error(handle), Errc::no_key);
  close(handle);
}

TEST_F(Control, who_hangs_up_waits_no_more) {
  const crypto::KeyId id = vault();
  const volume::HandleId handle = open("/vault/open");
  mount::Request request = removal_of(id, {.mode = RemovalMode::safe, .wait = true});
  request.sequence = 1;
  as_user(kAda, [&] {
    mount::ControlClient waiter = client();
    ASSERT_TRUE(mount::send_message(waiter.socket(), mount::encode_request(request), -1, true));
    std::array<std::byte, mount::kPartBytesMax> answer;
    std::this_thread::sleep_for(200ms);  // more than the pause between two looks
    EXPECT_EQ(::recv(waiter.socket(), answer.data(), answer.size(), MSG_DONTWAIT), -1) << "waits";
  });
  for (int i = 0; i < 500 && server_->facts().connections != 0; ++i)
    std::this_thread::sleep_for(1ms);
  EXPECT_EQ(server_->facts().connections, 0U);
  close(handle);
  std::this_thread::sleep_for(250ms);
  EXPECT_EQ(status_as(kAda, id).state, KeyState::present) << "its safe removal was given up";
}

class ControlDeadline : public Control {
 protected:
  void SetUp() override {
    Control::SetUp();
    if (IsSkipped()) return;
    mount::ControlOptions options;
    options.requests_per_user = 2;
    serve(options);
    id_ = vault();
    handle_ = open("/vault/open");
  }
  void TearDown() override {
    if (volume_) close(handle_);
    Control::TearDown();
  }

  // Ada's, who hangs up when it is under way.
  void leave_behind(RemovalMode mode, u64 deadline_ns) {
    const u64 requests = server_->facts().requests;
    const volume::RemovalRequest removal{.mode = mode, .wait = true, .deadline_ns = deadline_ns};
    as_user(kAda, [&] {
      mount::ControlClient waiter = client();
      ASSERT_TRUE(mount::send_message(waiter.socket(),
                                      mount::encode_request(removal_of(id_, removal)), -1, true));
      until([&] { return server_->facts().requests > requests; });
      std::this_thread::sleep_for(50ms);  // some begin to wait, some have not yet
    });
    until([&] { return server_->facts().connections == 0; });
  }
  static void until(const std::function<bool()>& is_so) {
    for (int i = 0; i < 2000 && !is_so(); ++i) std::this_thread::sleep_for(10ms);
    EXPECT_TRUE(is_so());
  }
  KeyState state() { return volume_->key_status({0}, id_).state; }

  crypto::KeyId id_;
  volume::HandleId handle_{};
};

TEST_F(ControlDeadline, outlives_the_client_that_set_it) {
  for (const RemovalMode mode : {RemovalMode::soft, RemovalMode::sealed, RemovalMode::safe}) {
    leave_behind(mode, 300 * kMillisecond);
    EXPECT_NE(state(), KeyState::absent);
    until([&] { return state() == KeyState::absent; });
    EXPECT_EQ(read_error(handle_), Errc::no_key) << "its mode is deny";
    EXPECT_EQ(add_as(kAda, 7).done.error, std::nullopt) << "no request of hers is left over";
  }
}

TEST_F(ControlDeadline, outlives_the_time_that_a_client_waits) {
  mount::Request request = removal_of(id_, {.mode = RemovalMode::safe, .wait = true});
  request.wait_ns = 50 * kMillisecond;
  request.removal.deadline_ns = 500 * kMillisecond;
  EXPECT_EQ(ask_as(kAda, request).done.error, Errc::timed_out);
  EXPECT_EQ(state(), KeyState::present);
  until([&] { return state() == KeyState::absent; });
  for (int i = 0; i < 5; ++i)
    EXPECT_EQ(ask_as(kAda, about(Verb::key_list)).done.error, std::nullopt) << "two at a time";
}

TEST_F(ControlDeadline, is_taken_away_by_an_add) {
  for (const RemovalMode mode : {RemovalMode::soft, RemovalMode::safe}) {
    leave_behind(mode, 1000 * kMillisecond);
    EXPECT_EQ(add_as(kAda, 7).done.error, std::nullopt);
    std::this_thread::sleep_for(1500ms);
    EXPECT_EQ(state(), KeyState::present);
  }
}

TEST_F(ControlDeadline, ends_with_the_last_close) {
  leave_behind(RemovalMode::safe, kForever);
  EXPECT_EQ(state(), KeyState::present);
  close(handle_);
  until([&] { return state() == KeyState::absent; });
  add_as(kAda, 7);
  handle_ = open("/vault/open");
}

TEST_F(Control, policies_are_about_descriptors_of_the_mount) {
  const auto plain = make_directory(*volume_, {kAda}, "/plain");
  ASSERT_TRUE(plain);
  ASSERT_TRUE(volume_->set_attributes(*plain, {.uid = kAda}));
  const std::string at = pretend("plain", *plain, true);
  const mount::UniqueFd directory(::open(at.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  const Answer added = add_as(kAda, 7);
  EXPECT_EQ(ask_as(kAda, about(Verb::policy_get), directory.get()).done.error, Errc::no_attribute);
  EXPECT_EQ(ask_as(kBob, about(Verb::policy_set, added.done.key_id), directory.get()).done.error,
            Errc::permission)
      << "neither owner nor claim";
  EXPECT_EQ(ask_as(kAda, about(Verb::policy_set, added.done.key_id), directory.get()).done.error,
            std::nullopt);
  const Answer got = ask_as(kBob, about(Verb::policy_get), directory.get());
  EXPECT_EQ(got.done.error, std::nullopt);
  EXPECT_EQ(got.policy.id, added.done.key_id);
  EXPECT_TRUE(got.policy.directory);
  EXPECT_FALSE(got.policy.locked);
  const mount::UniqueFd elsewhere(::open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  EXPECT_EQ(ask_as(0, about(Verb::policy_get), elsewhere.get()).done.error, Errc::cross_key);
}

TEST_F(Control, status_names_the_process_that_has_the_file_now) {
  const crypto::KeyId id = vault();
  const volume::HandleId handle = open("/vault/open");
  const auto facts = volume_->stat(handle);
  ASSERT_TRUE(facts);
  const std::string at = pretend("open", facts->inode, false);
  EXPECT_EQ(status_as(kAda, id).holders.at(0).pid, 0U) << "nobody has it";

  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    ::dup2(ready[1], STDOUT_FILENO);
    ::execlp("sh", "sh", "-c", "exec 3<\"$0\"; echo; exec sleep 60", at.c_str(), nullptr);
    ::_exit(127);
  }
  ::close(ready[1]);
  char byte = 0;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  volume::Holder holder;
  for (int i = 0; i < 200 && holder.command != "sleep"; ++i) {
    holder = status_as(kAda, id).holders.at(0);
    std::this_thread::sleep_for(10ms);
  }
  EXPECT_EQ(holder.pid, static_cast<u32>(child));
  EXPECT_EQ(holder.command, "sleep");
  EXPECT_EQ(holder.path, "/vault/open");

  // Closed, but mapped: by this process.
  mount::UniqueFd mapped(::open(at.c_str(), O_RDONLY | O_CLOEXEC));
  void* page = ::mmap(nullptr, 4096, PROT_READ, MAP_SHARED, mapped.get(), 0);
  ASSERT_NE(page, MAP_FAILED);
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  mapped.reset();
  holder = status_as(kAda, id).holders.at(0);
  EXPECT_EQ(holder.pid, static_cast<u32>(::getpid()));
  ::munmap(page, 4096);
  ::close(ready[0]);
  close(handle);
}

}  // namespace
}  // namespace latchkey::tests
