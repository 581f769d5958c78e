// Goal: of a message from a client the daemon takes the descriptors that it brought, and never
// others, whatever the client does meanwhile. Method: a pair of sockets as the daemon and a client
// have them.

#include "mount/control_receive.h"

#include <gtest/gtest.h>

#include "tests/support/control_messages.h"

namespace latchkey::mount {
namespace {

class ControlReceive : public ::testing::Test {
 protected:
  void SetUp() override { connect(); }
  void connect() {
    std::array<int, 2> ends{};
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends.data()),
              0);
    daemon_.reset(ends[0]);
    client_.reset(ends[1]);
  }
  void send(std::size_t descriptors) {
    const UniqueFd fd = tests::sealed_memory(64);
    const std::vector<int> fds(descriptors, fd.get());
    ASSERT_TRUE(tests::send_with(client_.get(), std::as_bytes(std::span("message", 7)), fds));
  }
  Received look() { return look_at_message(daemon_.get(), buffer_); }
  Received take(FdCloser::Bag& bag) { return take_message(daemon_.get(), buffer_, bag); }

  UniqueFd daemon_, client_;
  FdCloser closer_;
  std::array<std::byte, 64> buffer_{};
};

TEST_F(ControlReceive, a_message_is_looked_at_and_then_taken_with_what_it_brings) {
  send(2);
  const Received seen = look();
  EXPECT_TRUE(seen.message && seen.brings && !seen.gone);
  EXPECT_EQ(seen.size, 7U);
  FdCloser::Bag bag = closer_.bag(0, kDescriptorsMax);
  const Received taken = take(bag);
  EXPECT_TRUE(taken.message && !taken.brings && !taken.gone);
  EXPECT_EQ(bag.fds().size(), 2U);
  for (const int fd : bag.fds()) EXPECT_GE(::fcntl(fd, F_GETFD), 0);
  bag.close_here();
  EXPECT_FALSE(look().message || look().gone) << "there is no other";
}

TEST_F(ControlReceive, what_finds_no_room_is_said) {
  send(3);
  FdCloser::Bag bag = closer_.bag(0, 2);
  EXPECT_TRUE(take(bag).brings);
  EXPECT_EQ(bag.fds().size(), 2U);
  bag.close_here();
}

// A client that goes with an answer unread takes his message along, also between the two calls.
// The kernel writes nothing then, and in its place lie the numbers that were taken before.
TEST_F(ControlReceive, a_message_that_went_with_its_client_brings_nothing) {
  for (int turn = 0; turn < 3; ++turn) {
    connect();
    send(1);
    ASSERT_EQ(::send(daemon_.get(), "answer", 6, MSG_NOSIGNAL), 6);
    EXPECT_TRUE(look().message);
    const UniqueFd gone = std::move(daemon_);
    connect();
    send(3);
    FdCloser::Bag first = closer_.bag(0, kDescriptorsMax);
    FdCloser::Bag second = closer_.bag(0, kDescriptorsMax);
    take(first);
    const Received taken = take_message(gone.get(), buffer_, second);
    EXPECT_TRUE(taken.gone && !taken.message);
    EXPECT_EQ(first.fds().size(), 3U);
    EXPECT_TRUE(second.fds().empty()) << "they are of the other message";
    first.close_here();
  }
}

}  // namespace
}  // namespace latchkey::mount
