// Goal: the control socket of a mount is its daemon's, whoever had the name before; and a path that
// a user has named is taken from nobody. The number here is one that no file system has, and no
// other run of this test.

#include "mount/control_socket.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cstdlib>
#include <optional>
#include <string>
#include <utility>

#include "tests/support/temp_file.h"

namespace latchkey::mount {
namespace {

const dev_t kNumber = makedev(4095, static_cast<unsigned>(::getpid()) % (1U << 20));

bool is_asked(const ListeningSocket& socket) {
  pollfd waits{.fd = socket.fd(), .events = POLLIN, .revents = 0};
  return ::poll(&waits, 1, 0) == 1;
}

class ControlSocket : public testing::Test {
 protected:
  // The run directory of an ordinary user; root's is where it is.
  void SetUp() override {
    ASSERT_EQ(::unsetenv("LATCHKEY_SOCKET"), 0);
    ASSERT_EQ(::setenv("XDG_RUNTIME_DIR", folder_.path().c_str(), 1), 0);
  }
  tests::TempFolder folder_;
};

TEST_F(ControlSocket, of_a_mount_is_taken_from_a_daemon_on_its_way_out) {
  auto earlier = ListeningSocket::open(kNumber);
  ASSERT_TRUE(earlier) << earlier.error().what;
  std::optional before(std::move(*earlier));
  auto now = ListeningSocket::open(kNumber);
  ASSERT_TRUE(now) << now.error().what;
  EXPECT_EQ(now->path(), before->path());
  ASSERT_TRUE(connect_to_daemon(kNumber));
  EXPECT_TRUE(is_asked(*now));
  EXPECT_FALSE(is_asked(*before));
  before.reset();
  EXPECT_TRUE(connect_to_daemon(kNumber)) << "the earlier daemon took a name that was not its own";
}

TEST_F(ControlSocket, at_a_path_that_was_named_is_taken_from_nobody) {
  const std::string path = folder_.file("socket");
  {
    const auto first = ListeningSocket::open_at(path);
    ASSERT_TRUE(first);
    const auto second = ListeningSocket::open_at(path);
    ASSERT_FALSE(second);
    EXPECT_EQ(second.error().code, Errc::busy);
    EXPECT_TRUE(connect_at(path));
  }
  struct stat facts{};
  EXPECT_NE(::lstat(path.c_str(), &facts), 0) << "the name goes with its socket";
}

TEST_F(ControlSocket, is_made_over_a_dead_ones_and_over_nothing_else) {
  const std::string path = folder_.file("socket"), other = folder_.file("file");
  {
    auto dead = ListeningSocket::open_at(path);
    ASSERT_TRUE(dead);
    ASSERT_EQ(::rename(path.c_str(), folder_.file("kept").c_str()), 0);
  }
  ASSERT_EQ(::rename(folder_.file("kept").c_str(), path.c_str()), 0);
  EXPECT_TRUE(ListeningSocket::open_at(path));
  ASSERT_EQ(::mknod(other.c_str(), S_IFREG | 0600, 0), 0);
  const auto refused = ListeningSocket::open_at(other);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Errc::exists);
}

}  // namespace
}  // namespace latchkey::mount
