// Goal: where memory ends in a control server, a client is lost at most, and the server serves on.
// Method: the Nth allocation of any of its threads fails, N from one on, while a client asks, waits
// for a removal and sends what is no request; each is answered or its connection closed. A user may
// have few requests under way, so that one that was lost count of would be missed.

#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <filesystem>

#include "base/env.h"
#include "mount/control_server.h"
#include "tests/support/control_fixture.h"
#include "tests/support/control_messages.h"
#include "tests/support/invented_keys.h"
#include "tests/support/own_new.h"

namespace latchkey::tests {

namespace {

thread_local bool spared = false;  // the test's own thread
std::atomic<i64> allocations{-1};  // until one fails; negative: none does

}  // namespace

void* own_allocate(std::size_t size, std::size_t align) noexcept {
  if (!spared && allocations.load() >= 0 && allocations.fetch_sub(1) == 0) return nullptr;
  return from_malloc(size, align);
}
void own_release(void* allocated) noexcept { std::free(allocated); }

namespace {

using mount::UniqueFd;
using mount::Verb;

constexpr i64 kAllocationsMax = 400;
constexpr u32 kAda = 1000;

mount::Request about(Verb verb, u8 kind) {
  mount::Request request;
  request.verb = verb;
  request.id.bytes[3] = std::byte{kind};
  request.removal.wait = verb == Verb::key_remove;
  return request;
}

class ControlMemory : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "a user with bounds is none that is root";
    spared = true;
    ::chmod(folder_.path().c_str(), 0755);
    mount::ControlOptions options;
    options.requests_per_user = 4;
    options.connections_per_user = 4;
    auto socket = mount::ListeningSocket::open_at(path_);
    ASSERT_TRUE(socket) << socket.error().what;
    auto server =
        mount::ControlServer::start(std::move(*socket), 1, service_, system_env(), options);
    ASSERT_TRUE(server) << server.error().what;
    server_ = std::move(*server);
  }

  UniqueFd connected() {
    auto socket = mount::connect_at(path_);
    EXPECT_TRUE(socket) << socket.error().what;
    const timeval patience{.tv_sec = 20, .tv_usec = 0};
    EXPECT_EQ(::setsockopt(socket->get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)), 0);
    return std::move(*socket);
  }
  // False: the connection is closed. It fails where neither comes.
  static bool is_answered(const UniqueFd& socket) {
    std::vector<std::byte> buffer(mount::kPartBytesMax);
    mount::Answer answer;
    for (;;) {
      const ssize_t got = ::recv(socket.get(), buffer.data(), buffer.size(), 0);
      EXPECT_FALSE(got < 0 && errno == EAGAIN) << "neither an answer nor the end";
      if (got <= 0) return false;
      const auto last =
          mount::decode_part(Bytes(buffer).first(static_cast<std::size_t>(got)), answer);
      if (!last || *last) return last.has_value();
    }
  }
  bool ask(const UniqueFd& socket, const mount::Request& request) {
    return send_with(socket.get(), mount::encode_request(request), {}) && is_answered(socket);
  }
  void talk() {
    const UniqueFd socket = connected();
    if (!ask(socket, about(Verb::key_list, 0))) return;
    if (!ask(socket, about(Verb::key_remove, 2))) return;  // waits for one look
    const UniqueFd key = sealed_memory(64);
    if (send_with(socket.get(), mount::encode_request(about(Verb::key_list, 0)), {{key.get()}}))
      (void)is_answered(socket);
  }
  static std::size_t open_descriptors() {
    const std::filesystem::directory_iterator all("/proc/self/fd");
    return static_cast<std::size_t>(std::distance(begin(all), end(all)));
  }

  TempFolder folder_{"/tmp"};
  const std::string path_ = folder_.file("control.sock");
  InventedKeys service_;
  std::unique_ptr<mount::ControlServer> server_;
};

TEST_F(ControlMemory, a_client_is_lost_at_most) {
  talk();
  const std::size_t before = open_descriptors();
  as_user(kAda, [&] {
    spared = true;
    for (i64 nth = 0; nth < kAllocationsMax && !HasFailure(); ++nth) {
      allocations.store(nth);
      talk();
      const bool reached = allocations.exchange(-1) < 0;
      const UniqueFd socket = connected();
      EXPECT_TRUE(ask(socket, about(Verb::key_list, 0))) << "after allocation " << nth;
      if (!reached) {
        std::printf("%ld allocations\n", static_cast<long>(nth));
        EXPECT_GT(nth, 30);
        return;
      }
    }
    ADD_FAILURE() << "there is no end of allocations";
  });
  for (int i = 0; i < 1000 && open_descriptors() > before; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_LE(open_descriptors(), before) << "descriptors were kept";
}

}  // namespace
}  // namespace latchkey::tests
