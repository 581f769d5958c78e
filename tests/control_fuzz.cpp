// Fuzz target: the control socket's protocol. Bytes of any content are read as a request, as parts
// of an answer, and as what a client sends to a living server: messages with any flags, descriptors
// of several kinds, and replies that nobody reads. Nothing may stop the process, leak memory or a
// descriptor, or take long; what was decoded and is encoded again is the same message.
//
//   build/fuzz/tests/control_fuzz -max_total_time=600 -timeout=10 FOLDER
//
// The server talks to a service that answers at once and invents its answers. An empty FOLDER is
// filled with one message of each kind first.

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>

#include "base/check.h"
#include "mount/control_client.h"
#include "mount/control_server.h"
#include "tests/support/control_messages.h"
#include "tests/support/invented_keys.h"

namespace latchkey::tests {
namespace {

using mount::UniqueFd;
using mount::Verb;

struct World {
  InventedKeys service;
  std::string path;
  std::unique_ptr<mount::ControlServer> server;

  World() {
    std::string folder = "/tmp/control_fuzz_XXXXXX";
    LK_CHECK(::mkdtemp(folder.data()) != nullptr);
    path = folder + "/socket";
    auto socket = mount::ListeningSocket::open_at(path);
    LK_CHECK(socket.has_value());
    mount::ControlOptions options;
    options.jobs.quick_threads = options.jobs.slow_threads = 1;
    options.jobs.answer_bytes_max = 64 * kKiB;
    auto started =
        mount::ControlServer::start(std::move(*socket), 1, service, system_env(), options);
    LK_CHECK(started.has_value());
    server = std::move(*started);
  }
};

World& world() {
  static auto* const one = new World;  // for the life of the process
  return *one;
}

// What can be sent along, each opened anew.
UniqueFd descriptor(u8 kind) {
  switch (kind % 6) {
    case 0:
      return sealed_memory(64);
    case 1:
      return UniqueFd(::memfd_create("key", MFD_CLOEXEC));
    case 2:
      return UniqueFd(::open("/dev/null", O_RDWR | O_CLOEXEC));
    case 3:
      return UniqueFd(::open("/proc", O_PATH | O_CLOEXEC));
    case 4:
      return UniqueFd(::epoll_create1(EPOLL_CLOEXEC));
    default:
      return UniqueFd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  }
}

// Pieces of {length, kind and number of descriptors, bytes}, each a message on one connection.
void talk(Bytes script) {
  auto socket = mount::connect_at(world().path);
  if (!socket) return;
  std::array<std::byte, mount::kPartBytesMax> answer;
  while (script.size() >= 2) {
    const std::size_t size =
        std::min<std::size_t>(std::to_integer<u8>(script[0]), script.size() - 2);
    const u8 how = std::to_integer<u8>(script[1]);
    std::vector<UniqueFd> fds;
    std::vector<int> numbers;
    for (u8 i = 0; i < (how & 3); ++i) {
      fds.push_back(descriptor(static_cast<u8>((how >> 2) + i)));
      numbers.push_back(fds.back().get());
    }
    (void)send_with(socket->get(), script.subspan(2, size), numbers, MSG_DONTWAIT);
    script = script.subspan(2 + size);
    if ((how & 0x80) != 0) (void)::recv(socket->get(), answer.data(), answer.size(), MSG_DONTWAIT);
  }
  if (!script.empty()) {  // wait for one answer, or for the end
    timeval patience{.tv_sec = 0, .tv_usec = 20'000};
    (void)::setsockopt(socket->get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    (void)::recv(socket->get(), answer.data(), answer.size(), 0);
  }
}

// Of pure decoding there are millions a minute.
void decode(Bytes bytes) {
  if (const auto request = mount::decode_request(bytes)) {
    const auto again = mount::encode_request(*request);
    LK_CHECK(std::ranges::equal(again, bytes));
  }
  mount::Answer answer;
  while (bytes.size() >= sizeof(mount::WireHeader)) {
    const auto header = load_disk<mount::WireHeader>(bytes);
    const std::size_t size = std::min<std::size_t>(
        sizeof(mount::WireHeader) + static_cast<std::size_t>(header.length.get()), bytes.size());
    const auto last = mount::decode_part(bytes.first(size), answer);
    if (!last || *last) break;
    bytes = bytes.subspan(size);
  }
  mount::AnswerWriter writer(1, 64 * kKiB);
  writer.add(answer.removal);
  writer.add(answer.holders);
  writer.add(answer.store);
  writer.add(answer.policy);
  mount::Answer second;
  for (const auto& message : writer.finish(std::move(answer.done)))
    LK_CHECK(mount::decode_part(message, second).has_value());
}

// Each request, each part of an answer, and a conversation of all requests.
std::vector<std::vector<std::byte>> seeds() {
  std::vector<std::vector<std::byte>> all;
  std::vector<std::byte> script{std::byte{0xff}};
  for (u16 verb = 1; verb <= 7; ++verb) {
    mount::Request request;
    request.verb = static_cast<Verb>(verb);
    request.sequence = verb;
    request.key_bytes = 64;
    request.removal.wait = true;
    request.removal.deadline_ns = 1;
    request.id.bytes.fill(std::byte{2});
    auto message = mount::encode_request(request);
    script.push_back(std::byte(static_cast<u8>(message.size())));
    script.push_back(std::byte{static_cast<u8>(mount::wants_descriptor(request.verb) ? 1 : 0x80)});
    script.insert(script.end(), message.begin(), message.end());
    message.insert(message.begin(), std::byte{0});
    all.push_back(std::move(message));
  }
  all.push_back(std::move(script));
  mount::AnswerWriter writer(1, kMiB);
  volume::RemovalReport report;
  report.phases.push_back({"door", 1});
  report.lost.push_back({{256, 300}, "/vault/a", 1});
  report.holders.resize(1);
  writer.add(report);
  writer.add(volume::KeyReport{});
  mount::StoreReport store;
  store.label = "label";
  writer.add(store);
  writer.add(mount::PolicyReport{});
  std::vector<std::byte> answer{std::byte{0}};
  mount::Done done;
  done.error = Errc::busy;
  done.sentence = "busy";
  for (const auto& message : writer.finish(std::move(done)))
    answer.insert(answer.end(), message.begin(), message.end());
  all.push_back(std::move(answer));
  return all;
}

std::size_t open_descriptors() {
  const std::filesystem::directory_iterator all("/proc/self/fd");
  return static_cast<std::size_t>(std::distance(begin(all), end(all)));
}

}  // namespace
}  // namespace latchkey::tests

extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  namespace fs = std::filesystem;
  const fs::path folder = (*argv)[*argc - 1];
  if (!fs::is_directory(folder) || !fs::is_empty(folder)) return 0;
  int number = 0;
  for (const auto& seed : latchkey::tests::seeds())
    std::ofstream(folder / std::to_string(number++), std::ios::binary)
        .write(reinterpret_cast<const char*>(seed.data()),
               static_cast<std::streamsize>(seed.size()));
  return 0;
}

// The first byte says which way the rest goes: a conversation takes a thousand times as long.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace latchkey;  // NOLINT: a fuzz target and nothing else
  if (size == 0) return 0;
  const Bytes bytes = std::as_bytes(std::span(data, size)).subspan(1);
  const bool talks = data[0] >= 0xf0;
  if (!talks) {
    tests::decode(bytes);
    return 0;
  }
  tests::talk(bytes);
  static std::size_t talked = 0;
  // Connections that are just closing have some; what stays would grow.
  if (++talked % 4096 == 0) LK_CHECK(tests::open_descriptors() < 200);
  return 0;
}
