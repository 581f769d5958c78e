// get: files of the store to the host, as cp does.

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <map>
#include <utility>

#include "cli/copy.h"

namespace latchkey::cli {

namespace fs = std::filesystem;

namespace {

constexpr std::size_t kChunkBytes = kMiB;
constexpr const char* kNotWritten = "cannot be written";

bool is_zero(Bytes bytes) {
  return bytes[0] == std::byte{} &&
         std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0;
}

// Writes to a descriptor; into an empty regular file, long runs of zeros as holes.
class Output {
 public:
  Output(int fd, bool holes) : fd_(fd), holes_(holes) {}

  Result<void> write(Bytes bytes) {
    if (!holes_) return write_all(fd_, bytes, kNotWritten);
    while (!bytes.empty()) {
      const std::size_t zeros = prefix(bytes, true);
      zeros_ += zeros;
      bytes = bytes.subspan(zeros);
      if (bytes.empty()) break;
      LK_TRYV(write_zeros());
      const std::size_t data = prefix(bytes, false);
      LK_TRYV(write_all(fd_, bytes.first(data), kNotWritten));
      bytes = bytes.subspan(data);
    }
    return {};
  }

  bool holes() const { return holes_; }
  void skip(u64 zeros) { zeros_ += zeros; }  // only with holes

  Result<void> finish() {
    const bool hole = zeros_ >= kHoleBytesMin;
    LK_TRYV(write_zeros());
    if (hole && ::ftruncate(fd_, ::lseek(fd_, 0, SEEK_CUR)) != 0)
      return std::unexpected(host_error(kNotWritten));
    return {};
  }

 private:
  static constexpr std::size_t kPageBytes = 4 * kKiB;
  static constexpr std::size_t kHoleBytesMin = 64 * kKiB;

  // Bytes of the pages at the front that are zero, or are not.
  static std::size_t prefix(Bytes bytes, bool zero) {
    std::size_t size = 0;
    while (size < bytes.size()) {
      const Bytes page = bytes.subspan(size, std::min(kPageBytes, bytes.size() - size));
      if (is_zero(page) != zero) break;
      size += page.size();
    }
    return size;
  }

  Result<void> write_zeros() {
    const u64 zeros = std::exchange(zeros_, 0);
    if (zeros == 0) return {};
    if (zeros < kHoleBytesMin) {
      static constexpr std::array<std::byte, kHoleBytesMin> kZeros{};
      return write_all(fd_, Bytes(kZeros).first(zeros), kNotWritten);
    }
    if (::lseek(fd_, static_cast<off_t>(zeros), SEEK_CUR) < 0)
      return std::unexpected(host_error(kNotWritten));
    return {};
  }

  const int fd_;
  const bool holes_;
  u64 zeros_ = 0;  // at the end, not yet written
};

class Getter {
 public:
  // `archive`: everything is kept (cli/attributes.h), else of a file its mode and mtime.
  Getter(const Common& common, const std::string& image, volume::Volume& volume, bool archive,
         CopyReport& report)
      : image_(image),
        volume_(volume),
        archive_(archive),
        report_(report),
        progress_(common, "get"),
        buffer_(kChunkBytes) {}

  std::string failed;  // the name that an error is about

  Result<void> file_to_output(volume::InodeId directory, const std::string& name) {
    LK_TRY(const volume::HandleId handle, open(directory, name));
    auto copied = copy(handle, Output(STDOUT_FILENO, false));
    if (!copied && copied.error().os_errno != 0) failed = "standard output";
    LK_TRYV(volume_.close_handle(handle));
    return copied;
  }

  // A place that was named may be anything that can be written to; one in a tree becomes what the
  // store has: no symlink there is followed, whoever made it.
  Result<void> file_to(volume::InodeId directory, const std::string& name, const volume::Stat& stat,
                       const fs::path& target, bool named) {
    // What cannot be read overwrites nothing.
    LK_TRY(const volume::HandleId handle, open(directory, name));
    auto copied = copy_to(handle, stat, target, named);
    LK_TRYV(volume_.close_handle(handle));
    return copied;
  }

  Result<void> tree(volume::InodeId directory, const volume::Stat& stat, const fs::path& target,
                    bool named) {
    failed = target;
    if (::mkdir(target.c_str(), 0700) != 0) {
      struct stat found{};
      if (errno != EEXIST) return std::unexpected(host_error("cannot be made"));
      if (!named && (::lstat(target.c_str(), &found) != 0 || !S_ISDIR(found.st_mode)))
        return fail(Errc::not_dir, "is no directory; a directory cannot take its place");
    }
    ++report_.directories;
    LK_TRY(const auto entries, volume_.read_directory(directory));
    for (const volume::DirEntry& entry : entries) {
      failed = entry.name;
      // A store may hold anything; nothing is written outside of the target.
      if (entry.name.empty() || entry.name == "." || entry.name == ".." ||
          entry.name.find_first_of(std::string_view("/\0", 2)) != std::string::npos)
        return fail(Errc::malformed, "a name in the store is none that a file can have");
      LK_TRY(const volume::Stat below, volume_.stat(entry.inode));
      if (below.kind == volume::FileKind::directory)
        LK_TRYV(tree(entry.inode, below, target / entry.name, false));
      else
        LK_TRYV(leaf(directory, entry, below, target / entry.name));
    }
    return get_attributes(volume_, stat, target, -1, report_.left_attributes);
  }

  // Anything but a directory, as what it is; under a further name of a file that was got, as one.
  Result<void> leaf(volume::InodeId directory, const volume::DirEntry& entry,
                    const volume::Stat& stat, const fs::path& target) {
    failed = target;
    const auto found = got_.find(stat.inode);
    if (found != got_.end()) {
      LK_TRYV(make_way(target));
      if (::link(found->second.c_str(), target.c_str()) != 0)
        return std::unexpected(host_error("cannot be made a hard link"));
      ++report_.hard_links;
      return {};
    }
    if (stat.kind == volume::FileKind::regular)
      LK_TRYV(file_to(directory, entry.name, stat, target, false));
    else
      LK_TRYV(node(entry, stat, target));
    if (stat.links > 1) got_.emplace(stat.inode, target);
    return {};
  }

 private:
  // A symlink or a special file. A device that may not be made here is left out.
  Result<void> node(const volume::DirEntry& entry, const volume::Stat& stat,
                    const fs::path& target) {
    std::string text;
    if (stat.kind == volume::FileKind::symlink) {
      failed = entry.name;
      if (stat.locked) return fail(Errc::no_key, "the key of this symlink is not present");
      LK_TRY(text, volume_.read_link(stat.inode));
    }
    failed = target;
    LK_TRYV(make_way(target));
    if (stat.kind == volume::FileKind::symlink) {
      if (::symlink(text.c_str(), target.c_str()) != 0)
        return std::unexpected(host_error("cannot be made"));
      ++report_.symlinks;
    } else {
      if (::mknod(target.c_str(), type_of(stat.kind) | 0600, stat.device) != 0) {
        if (errno != EPERM || !volume::is_device(stat.kind))
          return std::unexpected(host_error("cannot be made"));
        report_.skipped.push_back({target, "you may not make devices"});
        return {};
      }
      ++report_.special;
    }
    return get_attributes(volume_, stat, target, -1, report_.left_attributes);
  }

  static mode_t type_of(volume::FileKind kind) {
    return kind == volume::FileKind::fifo          ? S_IFIFO
           : kind == volume::FileKind::socket      ? S_IFSOCK
           : kind == volume::FileKind::char_device ? S_IFCHR
                                                   : S_IFBLK;
  }

  // What is at the place of a new name goes, but for a directory and the image itself.
  Result<void> make_way(const fs::path& target) {
    struct stat found{};
    if (::lstat(target.c_str(), &found) != 0) return {};
    LK_TRYV(image_.refuse(found));
    if (::unlink(target.c_str()) != 0) return std::unexpected(host_error("cannot be replaced"));
    return {};
  }

  Result<volume::HandleId> open(volume::InodeId directory, const std::string& name) {
    failed = name;
    return volume_.open_file(caller(), directory, name, {}, 0, name);
  }

  // Where data goes on, or the file ends. A hole is not read: there may be a lot of it.
  Result<u64> next_data(volume::HandleId handle, u64 offset, u64 size, u64& data_end) {
    LK_TRY(const auto data, volume_.seek(handle, offset, volume::Seek::data));
    data_end = size;
    if (!data) return std::max(offset, size);
    LK_TRY(const auto hole, volume_.seek(handle, *data, volume::Seek::hole));
    data_end = hole.value_or(size);
    return *data;
  }

  Result<void> copy(volume::HandleId handle, Output output) {
    LK_TRY(const volume::Stat stat, volume_.stat(handle));
    u64 data_end = 0;
    for (u64 offset = 0;;) {
      if (output.holes() && offset >= data_end) {
        LK_TRY(const u64 next, next_data(handle, offset, stat.size, data_end));
        output.skip(next - offset);
        report_.bytes += next - offset;
        offset = next;
      }
      const u64 wanted = output.holes() ? std::max(data_end, offset + 1) - offset : buffer_.size();
      const auto into = MutableBytes(buffer_).first(std::min<u64>(wanted, buffer_.size()));
      LK_TRY(const u64 got, volume_.read(handle, offset, into));
      if (got == 0) break;
      LK_TRYV(output.write(Bytes(buffer_).first(got)));
      offset += got;
      report_.bytes += got;
      progress_.update(report_.bytes, 0, "B");
    }
    LK_TRYV(output.finish());
    ++report_.files;
    return {};
  }

  Result<void> copy_to(volume::HandleId handle, const volume::Stat& stat, const fs::path& target,
                       bool named) {
    const std::string source = std::exchange(failed, target);
    if (!named) {
      struct stat found{};
      if (::lstat(target.c_str(), &found) == 0 && !S_ISREG(found.st_mode))
        LK_TRYV(make_way(target));
    }
    const int fd =
        ::open(target.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | (named ? 0 : O_NOFOLLOW), 0600);
    if (fd < 0) return std::unexpected(host_error("cannot be made"));
    auto copied = overwrite(handle, stat, target, fd);
    if (!copied && copied.error().os_errno == 0 && copied.error().code != Errc::invalid)
      failed = source;
    if (::close(fd) != 0 && copied) copied = std::unexpected(host_error(kNotWritten));
    return copied;
  }

  Result<void> overwrite(volume::HandleId handle, const volume::Stat& stat, const fs::path& target,
                         int fd) {
    struct stat found{};
    if (::fstat(fd, &found) != 0) return std::unexpected(host_error("cannot be looked at"));
    LK_TRYV(image_.refuse(found));
    const bool regular = S_ISREG(found.st_mode);  // not /dev/null
    if (regular && ::ftruncate(fd, 0) != 0) return std::unexpected(host_error("cannot be emptied"));
    LK_TRYV(copy(handle, Output(fd, regular)));
    if (!regular) return {};
    if (archive_) return get_attributes(volume_, stat, target, fd, report_.left_attributes);
    const timespec mtime{stat.mtime_ns / 1'000'000'000, stat.mtime_ns % 1'000'000'000};
    const timespec times[2] = {mtime, mtime};
    if (::fchmod(fd, stat.mode) != 0 || ::futimens(fd, times) != 0)
      return std::unexpected(host_error("mode and time cannot be set"));
    return {};
  }

  const ImageIdentity image_;
  volume::Volume& volume_;
  const bool archive_;
  CopyReport& report_;
  Progress progress_;
  std::vector<std::byte> buffer_;
  std::map<volume::InodeId, fs::path> got_;  // what has several names in the store
};

}  // namespace

Exit run_get(const Common& common, const CopyArgs& args) {
  const auto source = parse_target(args.source);
  if (!source) return report_usage(common, args.source, "is not of the form IMG:/path");
  volume::VolumeOptions options;
  options.read_only = true;
  CopyReport report;
  std::error_code unknown;  // what cannot be looked at is no directory
  const bool to_stdout = args.destination == "-";
  const Exit exit = with_volume(
      common, source->image, args.key, options,
      [&](volume::Volume& volume, const std::optional<crypto::KeyId>&) {
        auto parent = volume::resolve_parent(volume, source->path);
        auto inode = volume::resolve(volume, source->path);
        if (!parent || !inode)
          return report_error(common, source->path, parent ? inode.error() : parent.error());
        const auto stat = volume.stat(*inode);
        if (!stat) return report_error(common, source->path, stat.error());
        const bool directory = stat->kind == volume::FileKind::directory;
        if (directory && (!args.recursive || to_stdout))
          return report_usage(common, source->path, "is a directory; -r copies it to a folder");
        fs::path target = args.destination;
        if (!to_stdout && fs::is_directory(target, unknown) && !parent->name.empty())
          target /= parent->name;
        Getter getter(common, source->image, volume, args.recursive, report);
        auto done =
            to_stdout   ? getter.file_to_output(parent->directory, parent->name)
            : directory ? getter.tree(*inode, *stat, target, true)
            : args.recursive && stat->kind != volume::FileKind::regular
                ? getter.leaf(parent->directory, {parent->name, *inode, stat->kind}, *stat, target)
                : getter.file_to(parent->directory, parent->name, *stat, target, true);
        if (!done) return report_error(common, getter.failed, done.error());
        return Exit::ok;
      });
  return exit == Exit::ok && !to_stdout ? print_report(common, report, "got") : exit;
}

}  // namespace latchkey::cli
