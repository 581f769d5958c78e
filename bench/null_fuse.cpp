// A FUSE file system without any work: it keeps names and sizes of files, drops what is written and
// reads as zeroes. What is left is what requests cost on their way through this kernel: the limit
// of every mount, as the bare device is another.
//
//     null_fuse DIRECTORY     mounts there and serves until it is umounted
//
// It asks for what latchkey's mount asks for, so the kernel sends the same requests, and takes them
// as that does, a companion included (mount/companion.h); each is answered at once.

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "base/thread.h"
#include "mount/companion.h"
#include "mount/device_io.h"
#include "mount/file_system.h"
#include "mount/fuse.h"

namespace latchkey::bench {
namespace {

constexpr int kThreads = 4;  // none of them ever waits
constexpr double kKept = 3600;
constexpr u64 kReplyBytes = u64{1} << 20;

// One directory. A file's number is its place here, behind the root's.
class Names {
 public:
  fuse_ino_t find(const std::string& name) {
    Lock lock(mutex_);
    const auto found = names_.find(name);
    return found == names_.end() ? 0 : found->second;
  }
  fuse_ino_t make(const std::string& name) {
    Lock lock(mutex_);
    sizes_.push_back(0);
    return names_[name] = sizes_.size() + FUSE_ROOT_ID;
  }
  bool remove(const std::string& name) {
    Lock lock(mutex_);
    return names_.erase(name) != 0;
  }
  u64 size(fuse_ino_t file) {
    Lock lock(mutex_);
    return sizes_.at(place(file));
  }
  void set_size(fuse_ino_t file, u64 size) {
    Lock lock(mutex_);
    sizes_.at(place(file)) = size;
  }
  void grow(fuse_ino_t file, u64 to) {
    Lock lock(mutex_);
    u64& size = sizes_.at(place(file));
    size = std::max(size, to);
  }

 private:
  static std::size_t place(fuse_ino_t file) { return file - FUSE_ROOT_ID - 1; }

  Mutex mutex_;
  std::map<std::string, fuse_ino_t> names_ LK_GUARDED_BY(mutex_);
  std::vector<u64> sizes_ LK_GUARDED_BY(mutex_);
};

Names& names_of(fuse_req_t req) { return *static_cast<Names*>(fuse_req_userdata(req)); }

struct stat stat_of(Names& names, fuse_ino_t node) {
  struct stat stat{};
  stat.st_ino = node;
  stat.st_nlink = 1;
  stat.st_mode = node == FUSE_ROOT_ID ? S_IFDIR | 0755 : S_IFREG | 0600;
  if (node != FUSE_ROOT_ID) stat.st_size = static_cast<off_t>(names.size(node));
  return stat;
}

fuse_entry_param entry_of(Names& names, fuse_ino_t node) {
  fuse_entry_param entry{};
  entry.ino = node;
  entry.attr = stat_of(names, node);
  entry.attr_timeout = entry.entry_timeout = kKept;
  return entry;
}

void init(void*, fuse_conn_info* connection) {
  connection->want &= ~static_cast<unsigned>(FUSE_CAP_WRITEBACK_CACHE | FUSE_CAP_CACHE_SYMLINKS |
                                             FUSE_CAP_READDIRPLUS | FUSE_CAP_AUTO_INVAL_DATA |
                                             FUSE_CAP_HANDLE_KILLPRIV | FUSE_CAP_SPLICE_READ);
  if ((connection->capable & FUSE_CAP_EXPLICIT_INVAL_DATA) != 0)
    connection->want |= FUSE_CAP_EXPLICIT_INVAL_DATA;
  connection->max_background = mount::FileSystemOptions{}.background_max;
  connection->congestion_threshold = connection->max_background * 3 / 4;
  mount::expect_init_answer();
}

void lookup(fuse_req_t req, fuse_ino_t, const char* name) {
  const fuse_ino_t node = names_of(req).find(name);
  if (node == 0) {
    fuse_reply_err(req, ENOENT);
    return;
  }
  const fuse_entry_param entry = entry_of(names_of(req), node);
  fuse_reply_entry(req, &entry);
}

void getattr(fuse_req_t req, fuse_ino_t node, fuse_file_info*) {
  const struct stat stat = stat_of(names_of(req), node);
  fuse_reply_attr(req, &stat, kKept);
}

void setattr(fuse_req_t req, fuse_ino_t node, struct stat* to, int which, fuse_file_info*) {
  if ((which & FUSE_SET_ATTR_SIZE) != 0)
    names_of(req).set_size(node, static_cast<u64>(to->st_size));
  getattr(req, node, nullptr);
}

void create(fuse_req_t req, fuse_ino_t, const char* name, mode_t, fuse_file_info* info) {
  const fuse_entry_param entry = entry_of(names_of(req), names_of(req).make(name));
  info->keep_cache = 1;
  fuse_reply_create(req, &entry, info);
}

void unlink(fuse_req_t req, fuse_ino_t, const char* name) {
  fuse_reply_err(req, names_of(req).remove(name) ? 0 : ENOENT);
}

void open(fuse_req_t req, fuse_ino_t, fuse_file_info* info) {
  info->keep_cache = 1;
  info->noflush = (info->flags & O_ACCMODE) == O_RDONLY;
  fuse_reply_open(req, info);
}

void read(fuse_req_t req, fuse_ino_t node, size_t size, off_t offset, fuse_file_info*) {
  static const std::vector<char> zeroes(kReplyBytes);
  const u64 end = names_of(req).size(node), at = static_cast<u64>(offset);
  fuse_reply_buf(req, zeroes.data(), std::min({u64{size}, kReplyBytes, end - std::min(at, end)}));
}

void write(fuse_req_t req, fuse_ino_t node, const char*, size_t size, off_t offset,
           fuse_file_info*) {
  names_of(req).grow(node, static_cast<u64>(offset) + size);
  fuse_reply_write(req, size);
}

void copy_file_range(fuse_req_t req, fuse_ino_t, off_t, fuse_file_info*, fuse_ino_t to,
                     off_t offset, fuse_file_info*, size_t size, int) {
  names_of(req).grow(to, static_cast<u64>(offset) + size);
  fuse_reply_write(req, size);
}

void opened_directory(fuse_req_t req, fuse_ino_t, fuse_file_info* info) {
  fuse_reply_open(req, info);
}
void no_attribute(fuse_req_t req, fuse_ino_t, const char*, size_t) { fuse_reply_err(req, ENODATA); }
void done(fuse_req_t req, fuse_ino_t, fuse_file_info*) { fuse_reply_err(req, 0); }
void synced(fuse_req_t req, fuse_ino_t, int, fuse_file_info*) { fuse_reply_err(req, 0); }
void forgotten(fuse_req_t req, fuse_ino_t, u64) { fuse_reply_none(req); }

fuse_lowlevel_ops operations() {
  fuse_lowlevel_ops ops{};
  ops.init = init;
  ops.lookup = lookup;
  ops.forget = forgotten;
  ops.getattr = getattr;
  ops.setattr = setattr;
  ops.getxattr = no_attribute;
  ops.create = create;
  ops.unlink = unlink;
  ops.open = open;
  ops.read = read;
  ops.write = write;
  ops.copy_file_range = copy_file_range;
  ops.flush = ops.release = ops.releasedir = done;
  ops.opendir = opened_directory;
  ops.fsync = ops.fsyncdir = synced;
  return ops;
}

// As mount/session.cpp takes requests.
void receive(fuse_session* session, mount::Companion& companion, std::atomic<int>& busy) {
  mount::be_ordinary();
  fuse_buf buffer{};
  mount::Companion::Turn turn;
  while (fuse_session_exited(session) == 0) {
    companion.wait_turn(turn);
    const int got = fuse_session_receive_buf(session, &buffer);
    if (got == -EINTR || got == -EAGAIN || got == -ENOENT) continue;
    if (got <= 0) break;
    const bool alone = busy.fetch_add(1) == 0;
    companion.taken(turn, {static_cast<std::byte*>(buffer.mem), static_cast<std::size_t>(got)},
                    alone);
    fuse_session_process_buf(session, &buffer);
    companion.answered(turn);
    busy.fetch_sub(1);
  }
  std::free(buffer.mem);
  companion.close();
}

int serve(std::string program, const std::string& directory) {
  std::string flag = "-o", words = "fsname=null,subtype=null,default_permissions";
  std::array<char*, 4> argv{program.data(), flag.data(), words.data(), nullptr};
  fuse_args args = FUSE_ARGS_INIT(3, argv.data());
  const fuse_lowlevel_ops ops = operations();
  Names names;
  fuse_session* session = fuse_session_new(&args, &ops, sizeof ops, &names);
  fuse_opt_free_args(&args);
  if (session == nullptr || fuse_session_mount(session, directory.c_str()) != 0 ||
      !mount::use_device_io(session))
    return 1;
  {
    mount::Companion companion;
    std::atomic<int> busy{0};
    companion.start(fuse_session_fd(session));
    std::vector<Thread> threads;
    threads.reserve(kThreads);
    for (int i = 0; i < kThreads; ++i)
      threads.emplace_back([&] { receive(session, companion, busy); });
    for (Thread& thread : threads) thread.join();
  }
  fuse_session_unmount(session);
  fuse_session_destroy(session);
  return 0;
}

}  // namespace
}  // namespace latchkey::bench

int main(int argc, char** argv) {
  if (argc == 2) return latchkey::bench::serve(argv[0], argv[1]);
  fmt::print(stderr, "null_fuse DIRECTORY\n");
  return 2;
}
