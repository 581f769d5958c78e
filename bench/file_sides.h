#pragma once
// One file at a time, through the kernel's calls or through the library: what the rows of
// file_rows.h are made of. Anything that fails ends the program; what a side has not is said by
// can(), before.

#include <fcntl.h>
#include <linux/aio_abi.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "base/check.h"
#include "bench/disk.h"
#include "engine/fd.h"

namespace latchkey::bench {

constexpr u64 kPage = 4 * kKiB;

// Fresh bytes for every write: what is written twice stays in the cache, real data does not.
// Aligned for direct I/O.
class Data {
 public:
  Data() : bytes_(kSize + kPage) {
    const auto address = reinterpret_cast<std::uintptr_t>(bytes_.data());
    base_ = bytes_.data() + (kPage - address % kPage) % kPage;
    std::mt19937_64 random(1);
    for (std::size_t i = 0; i < kSize; i += 8) {
      const u64 word = random();
      std::memcpy(base_ + i, &word, sizeof word);
    }
  }
  MutableBytes next(u64 size) {
    if (at_ + size > kSize) at_ = 0;
    at_ += size;
    return {base_ + at_ - size, size};
  }

 private:
  static constexpr std::size_t kSize = 64 * kMiB;
  std::vector<std::byte> bytes_;
  std::byte* base_ = nullptr;
  u64 at_ = 0;
};

struct FileMode {
  bool fresh = false;   // it is made, and must not be there
  bool direct = false;  // O_DIRECT
  bool write = true;
};

class FileSide {
 public:
  enum class Way : bool { read, write };

  virtual ~FileSide() = default;
  virtual bool has_direct() const = 0;
  virtual bool has_copies() const { return true; }
  virtual void open(const std::string& name, FileMode mode) = 0;
  virtual void write(u64 offset, Bytes data) = 0;
  virtual void read(u64 offset, MutableBytes into) = 0;
  // A page at each of these offsets, `depth` at a time; only where has_direct().
  virtual void pages(Way way, const std::vector<u64>& offsets, u32 depth, Data& data) = 0;
  virtual void fsync() = 0;
  virtual void close() = 0;
  virtual void remove(const std::string& name) = 0;
  virtual void copy(const std::string& from, const std::string& to, u64 size) = 0;
  virtual void settle() = 0;  // all that was done is durable
};

// A page at each of these offsets, `depth` at a time, by the kernel's own asynchronous calls
// (io_submit(2)), which are what direct I/O needs.
inline void direct_pages(int file, FileSide::Way way, const std::vector<u64>& offsets, u32 depth,
                         Data& data) {
  aio_context_t context = 0;
  LK_CHECK_MSG(::syscall(SYS_io_setup, depth, &context) == 0, "a context of io_submit");
  std::vector<iocb> calls(depth);
  std::vector<io_event> done(depth);
  std::vector<iocb*> idle;
  for (iocb& call : calls) idle.push_back(&call);
  for (std::size_t begun = 0, ended = 0; ended < offsets.size();) {
    for (; begun < offsets.size() && !idle.empty(); ++begun) {
      iocb* call = idle.back();
      idle.pop_back();
      *call = {};
      call->aio_data = reinterpret_cast<u64>(call);
      call->aio_lio_opcode = way == FileSide::Way::write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD;
      call->aio_fildes = static_cast<u32>(file);
      call->aio_buf = reinterpret_cast<u64>(data.next(kPage).data());
      call->aio_nbytes = kPage;
      call->aio_offset = static_cast<i64>(offsets[begun]);
      LK_CHECK_MSG(::syscall(SYS_io_submit, context, 1, &call) == 1, "an io_submit");
    }
    const auto count = ::syscall(SYS_io_getevents, context, 1, depth, done.data(), nullptr);
    LK_CHECK_MSG(count > 0, "an io_getevents");
    for (i64 i = 0; i < count; ++i) {
      const io_event& event = done[static_cast<std::size_t>(i)];
      LK_CHECK_MSG(event.res == i64{kPage}, "direct I/O");
      idle.push_back(reinterpret_cast<iocb*>(event.data));
      ++ended;
    }
  }
  LK_CHECK(::syscall(SYS_io_destroy, context) == 0);
}

// A directory of a mounted file system.
class MountedSide final : public FileSide {
 public:
  explicit MountedSide(std::string directory) : directory_(std::move(directory)) {}

  bool has_direct() const override { return true; }
  void open(const std::string& name, FileMode mode) override { file_ = opened(name, mode); }
  void write(u64 offset, Bytes data) override {
    const auto done = ::pwrite(file_.get(), data.data(), data.size(), static_cast<off_t>(offset));
    LK_CHECK_MSG(done == static_cast<ssize_t>(data.size()), "a write");
  }
  void read(u64 offset, MutableBytes into) override {
    const auto done = ::pread(file_.get(), into.data(), into.size(), static_cast<off_t>(offset));
    LK_CHECK_MSG(done == static_cast<ssize_t>(into.size()), "a read");
  }
  void pages(Way way, const std::vector<u64>& offsets, u32 depth, Data& data) override {
    direct_pages(file_.get(), way, offsets, depth, data);
  }
  void fsync() override { LK_CHECK_MSG(::fsync(file_.get()) == 0, "an fsync"); }
  void close() override { file_ = engine::Fd(); }
  void remove(const std::string& name) override {
    LK_CHECK_MSG(::unlink(path(name).c_str()) == 0, "an unlink");
  }
  void copy(const std::string& from, const std::string& to, u64 size) override {
    const engine::Fd source = opened(from, {.write = false});
    const engine::Fd target = opened(to, {.fresh = true});
    for (u64 left = size; left != 0;) {
      const auto done = ::copy_file_range(source.get(), nullptr, target.get(), nullptr, left, 0);
      LK_CHECK_MSG(done > 0, "copy_file_range");
      left -= static_cast<u64>(done);
    }
    LK_CHECK(::fsync(target.get()) == 0);
  }
  // syncfs(2) does not reach a FUSE file system; an fsync of its root may, and does ours.
  void settle() override {
    const engine::Fd root(::open(root_of(directory_).c_str(), O_RDONLY | O_CLOEXEC));
    LK_CHECK_MSG(::fsync(root.get()) == 0 && ::syncfs(root.get()) == 0, "a sync");
  }

 private:
  static std::string root_of(std::string directory) {
    struct stat here{}, above{};
    for (;; directory += "/..") {
      LK_CHECK(::stat(directory.c_str(), &here) == 0);
      LK_CHECK(::stat((directory + "/..").c_str(), &above) == 0);
      if (here.st_dev != above.st_dev || here.st_ino == above.st_ino) return directory;
    }
  }
  std::string path(const std::string& name) const { return directory_ + "/" + name; }
  engine::Fd opened(const std::string& name, FileMode mode) const {
    const int flags = (mode.write ? O_RDWR : O_RDONLY) | O_CLOEXEC |
                      (mode.fresh ? O_CREAT | O_EXCL : 0) | (mode.direct ? O_DIRECT : 0);
    engine::Fd file(::open(path(name).c_str(), flags, 0600));
    LK_CHECK_MSG(file.valid(), "an open");
    return file;
  }

  const std::string directory_;
  engine::Fd file_;
};

// The device itself, past all caches: the limit for who keeps nothing in memory. A name is a place,
// and nothing is made or removed.
class RawSide final : public FileSide {
 public:
  explicit RawSide(const std::string& device)
      : file_(::open(device.c_str(), O_RDWR | O_DIRECT | O_CLOEXEC)) {
    LK_CHECK_MSG(file_.valid(), "a device");
  }

  bool has_direct() const override { return true; }
  bool has_copies() const override { return false; }
  void open(const std::string& name, FileMode) override {
    const std::size_t number = name.find_last_not_of("0123456789") + 1;
    begin_ = number == name.size() ? 0 : 512 * kMiB + std::stoull(name.substr(number)) * kPage;
  }
  void write(u64 offset, Bytes data) override {
    const auto at = static_cast<off_t>(begin_ + offset);
    LK_CHECK_MSG(
        ::pwrite(file_.get(), data.data(), data.size(), at) == static_cast<ssize_t>(data.size()),
        "a write");
  }
  void read(u64 offset, MutableBytes into) override {
    const auto at = static_cast<off_t>(begin_ + offset);
    LK_CHECK_MSG(
        ::pread(file_.get(), into.data(), into.size(), at) == static_cast<ssize_t>(into.size()),
        "a read");
  }
  void pages(Way way, const std::vector<u64>& offsets, u32 depth, Data& data) override {
    direct_pages(file_.get(), way, offsets, depth, data);
  }
  void fsync() override { LK_CHECK_MSG(::fdatasync(file_.get()) == 0, "a flush"); }
  void close() override {}
  void remove(const std::string&) override {}
  void copy(const std::string&, const std::string&, u64) override { LK_CHECK(has_copies()); }
  void settle() override { fsync(); }

 private:
  const engine::Fd file_;
  u64 begin_ = 0;
};

// A store's encrypted directory, opened by this process.
class LibrarySide final : public FileSide {
 public:
  explicit LibrarySide(const std::string& device) {
    auto disk = Disk::open_on(device);
    LK_CHECK_MSG(disk.has_value(), "a store on the device");
    disk_ = std::move(*disk);
    auto volume = disk_->open({});
    LK_CHECK_MSG(volume.has_value(), "the store opens");
    volume_ = std::move(*volume);
  }

  bool has_direct() const override { return false; }
  void open(const std::string& name, FileMode mode) override {
    LK_CHECK(!mode.direct);
    handle_ = opened(name, mode);
  }
  void write(u64 offset, Bytes data) override {
    LK_CHECK(volume_->write(handle_, offset, data).has_value());
  }
  void read(u64 offset, MutableBytes into) override {
    LK_CHECK(volume_->read(handle_, offset, into).value_or(0) == into.size());
  }
  void pages(Way, const std::vector<u64>&, u32, Data&) override { LK_CHECK(has_direct()); }
  void fsync() override { LK_CHECK(volume_->fsync(handle_).has_value()); }
  void close() override { LK_CHECK(volume_->close_handle(handle_).has_value()); }
  void remove(const std::string& name) override {
    LK_CHECK(volume::remove_tree(*volume_, path(name)).has_value());
  }
  void copy(const std::string& from, const std::string& to, u64 size) override {
    const auto source = opened(from, {.write = false});
    const auto target = opened(to, {.fresh = true});
    LK_CHECK(volume_->clone_range(source, 0, target, 0, size).has_value());
    LK_CHECK(volume_->fsync(target).has_value());
    LK_CHECK(volume_->close_handle(source).has_value());
    LK_CHECK(volume_->close_handle(target).has_value());
  }
  void settle() override { LK_CHECK(volume_->sync().has_value()); }

 private:
  static std::string path(const std::string& name) { return "/vault/" + name; }
  volume::HandleId opened(const std::string& name, FileMode mode) {
    const auto handle =
        volume::open_path(*volume_, Disk::kUser, path(name),
                          {.write = mode.write, .create = mode.fresh, .exclusive = mode.fresh});
    LK_CHECK(handle.has_value());
    return *handle;
  }

  std::unique_ptr<Disk> disk_;
  std::unique_ptr<volume::Volume> volume_;
  volume::HandleId handle_{};
};

}  // namespace latchkey::bench
