#pragma once
// A control server in this process on a volume of a SimDevice, and clients of any uid: a thread
// takes a uid by the system call itself, which changes no other thread, and the kernel tells the
// server that uid. The "mount" is a folder of files, whose inode numbers stand for the volume's.

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <map>
#include <thread>

#include "base/mutex.h"
#include "mount/control_client.h"
#include "mount/control_server.h"
#include "tests/support/temp_file.h"
#include "tests/support/volume_fixture.h"

namespace latchkey::tests {

// Runs `body` as this uid, which nothing else of the process gets. Needs root unless it is ours.
inline void as_user(u32 uid, const std::function<void()>& body) {
  std::thread([&] {
    if (uid != static_cast<u32>(::geteuid())) {
      ASSERT_EQ(::syscall(SYS_setresgid, uid, uid, uid), 0);
      ASSERT_EQ(::syscall(SYS_setresuid, uid, uid, uid), 0);
    }
    body();
  }).join();
}

// What stands for what in the folder; of the test that runs.
class PretendedInodes {
 public:
  static PretendedInodes& instance() {
    static PretendedInodes inodes;
    return inodes;
  }
  void clear() {
    Lock lock(mutex_);
    inodes_.clear();
  }
  void put(u64 number, volume::InodeId inode) {
    Lock lock(mutex_);
    inodes_[number] = inode;
  }
  volume::InodeId inode_of(u64 number) {
    Lock lock(mutex_);
    const auto it = inodes_.find(number);
    return it == inodes_.end() ? volume::InodeId{} : it->second;
  }
  u64 number_of(volume::InodeId inode) {
    Lock lock(mutex_);
    for (const auto& [number, known] : inodes_)
      if (known == inode) return number;
    return 0;
  }

 private:
  Mutex mutex_;
  std::map<u64, volume::InodeId> inodes_ LK_GUARDED_BY(mutex_);
};

class ControlTest : public VolumeTest {
 protected:
  static constexpr u32 kAda = 1000, kBob = 1001;

  ControlTest() : folder_("/tmp") { ::chmod(folder_.path().c_str(), 0755); }

  void SetUp() override {
    VolumeTest::SetUp();
    serve();
  }
  void TearDown() override {
    server_.reset();
    PretendedInodes::instance().clear();
    VolumeTest::TearDown();
  }

  void serve(const mount::ControlOptions& options = {}) {
    server_.reset();
    struct stat facts{};
    ASSERT_EQ(::stat(folder_.path().c_str(), &facts), 0);
    const mount::InodeNumbers numbers{
        .inode_of = [](u64 number) { return PretendedInodes::instance().inode_of(number); },
        .number_of =
            [](volume::InodeId inode) { return PretendedInodes::instance().number_of(inode); },
    };
    service_ = mount::volume_key_service(*volume_, facts.st_dev, numbers, false);
    auto socket = mount::ListeningSocket::open_at(path());
    ASSERT_TRUE(socket) << socket.error().what;
    auto server = mount::ControlServer::start(std::move(*socket), facts.st_dev, *service_,
                                              system_env(), options);
    ASSERT_TRUE(server) << server.error().what;
    server_ = std::move(*server);
  }
  std::string path() const { return folder_.file("control.sock"); }

  // A file or directory of the folder that is the volume's `inode`.
  std::string pretend(const std::string& name, volume::InodeId inode, bool directory) {
    const std::string at = folder_.file(name);
    if (directory)
      EXPECT_EQ(::mkdir(at.c_str(), 0755), 0);
    else
      mount::UniqueFd(::open(at.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644)).reset();
    struct stat facts{};
    EXPECT_EQ(::stat(at.c_str(), &facts), 0);
    PretendedInodes::instance().put(facts.st_ino, inode);
    return at;
  }

  mount::ControlClient client() {
    auto connected = mount::ControlClient::connect_to(path());
    EXPECT_TRUE(connected) << connected.error().what;
    return std::move(*connected);
  }
  // An answer whatever the uid; the daemon's error is in it.
  mount::Answer ask_as(u32 uid, const mount::Request& request, int fd = -1) {
    mount::Answer answer;
    as_user(uid, [&] {
      auto asked = client().ask(request, fd);
      if (!asked) answer.done.error = asked.error().code;
      if (asked) answer = std::move(*asked);
    });
    return answer;
  }
  mount::Answer add_as(u32 uid, u8 tag) {
    mount::Answer answer;
    as_user(uid, [&] {
      auto asked = client().add_key(master_key(tag));
      ASSERT_TRUE(asked) << asked.error().what;
      answer = std::move(*asked);
    });
    return answer;
  }
  static mount::Request about(mount::Verb verb, const crypto::KeyId& id = {}) {
    mount::Request request;
    request.verb = verb;
    request.id = id;
    return request;
  }
  static mount::Request removal_of(const crypto::KeyId& id,
                                   const volume::RemovalRequest& removal = {}) {
    mount::Request request = about(mount::Verb::key_remove, id);
    request.removal = removal;
    return request;
  }
  // Of the key, as the user sees it.
  volume::KeyReport status_as(u32 uid, const crypto::KeyId& id) {
    mount::Answer answer = ask_as(uid, about(mount::Verb::key_status, id));
    EXPECT_EQ(answer.done.error, std::nullopt) << answer.done.sentence;
    if (answer.keys.size() != 1) return {};
    return std::move(answer.keys[0]);
  }

  TempFolder folder_;
  std::unique_ptr<mount::KeyService> service_;
  std::unique_ptr<mount::ControlServer> server_;
};

}  // namespace latchkey::tests
