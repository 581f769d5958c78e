// put: files of the host into the store, as cp does.

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "cli/copy.h"
#include "cli/interrupt.h"

namespace latchkey::cli {

namespace fs = std::filesystem;

std::string join(const std::string& directory, const std::string& name) {
  return directory.ends_with('/') ? directory + name : directory + "/" + name;
}

ImageIdentity::ImageIdentity(const std::string& image) {
  // What is not there has no identity: zero is no file's.
  if (::stat(image.c_str(), &image_) != 0) image_ = {};
}

Result<void> ImageIdentity::refuse(const struct stat& file) const {
  if (file.st_dev == image_.st_dev && file.st_ino == image_.st_ino && image_.st_ino != 0)
    return fail(Errc::invalid, "is the image that holds the store");
  return {};
}

void print_report(const Common& common, const CopyReport& report, std::string_view done) {
  if (common.json) {
    print_json(common, {{"files", report.files},
                        {"directories", report.directories},
                        {"bytes", report.bytes},
                        {"skipped", report.skipped}});
    return;
  }
  if (common.quiet) return;
  fmt::print("{} {} files and {} directories, {}\n", done, report.files, report.directories,
             format_bytes(report.bytes));
  static constexpr std::size_t kNamed = 10;
  for (std::size_t i = 0; i < std::min(kNamed, report.skipped.size()); ++i)
    fmt::print("skipped {}: neither a regular file nor a directory\n", report.skipped[i]);
  if (report.skipped.size() > kNamed)
    fmt::print("skipped {} more of that kind (--json names all)\n", report.skipped.size() - kNamed);
}

namespace {

constexpr std::size_t kChunkBytes = kMiB;
constexpr const char* kInterrupted = "interrupted here; what was put before it is in the store";

struct HostFile {
  int fd = -1;
  ~HostFile() {
    if (fd >= 0) ::close(fd);
  }
};

class Putter {
 public:
  Putter(const Common& common, const std::string& image, volume::Volume& volume, CopyReport& report)
      : image_(image),
        volume_(volume),
        report_(report),
        progress_(common, "put"),
        buffer_(kChunkBytes) {}

  // `failed` is the name that an error is about.
  std::string failed;

  // A source that turns out to be neither a regular file nor a directory is skipped; a named
  // symlink is followed, one that is found is not.
  Result<void> file(const fs::path& source, const std::string& target, bool follow) {
    failed = source;
    if (interrupted()) return fail(Errc::canceled, kInterrupted);
    HostFile host;
    // O_NONBLOCK: the open of a pipe would wait for its writer.
    const int flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | (follow ? 0 : O_NOFOLLOW);
    host.fd = ::open(source.c_str(), flags);
    struct stat info{};
    if (host.fd < 0 || ::fstat(host.fd, &info) != 0)
      return std::unexpected(host_error("cannot be read"));
    if (!S_ISREG(info.st_mode)) return skip(source);
    LK_TRYV(image_.refuse(info));
    volume::OpenFlags open_flags;
    failed = target;
    open_flags.write = open_flags.create = open_flags.truncate = true;
    LK_TRY(const volume::HandleId handle,
           volume::open_path(volume_, caller(), target, open_flags, info.st_mode & 07777));
    auto copied = copy(source, host.fd, target, handle);
    const auto stat = volume_.stat(handle);
    auto closed = volume_.close_handle(handle);
    LK_TRYV(copied);
    LK_TRYV(closed);
    if (!stat) return std::unexpected(stat.error());
    LK_TRYV(keep_times(stat->inode, info));
    ++report_.files;
    return {};
  }

  Result<void> tree(const fs::path& source, const std::string& target) {
    failed = source;
    struct stat info{};
    if (::lstat(source.c_str(), &info) != 0) return std::unexpected(host_error("cannot be read"));
    if (S_ISREG(info.st_mode)) return file(source, target, false);
    if (!S_ISDIR(info.st_mode)) return skip(source);
    failed = target;
    auto inode = volume::make_directory(volume_, caller(), target, info.st_mode & 07777);
    if (!inode && inode.error().code == Errc::exists) inode = volume::resolve(volume_, target);
    if (!inode) return std::unexpected(inode.error());
    ++report_.directories;
    std::error_code error;
    std::vector<fs::path> names;
    for (fs::directory_iterator at(source, error), end; !error && at != end; at.increment(error))
      names.push_back(at->path());
    if (error) {
      failed = source;
      errno = error.value();
      return std::unexpected(host_error("the directory cannot be read"));
    }
    std::ranges::sort(names);
    for (const fs::path& name : names) LK_TRYV(tree(name, join(target, name.filename())));
    failed = target;
    return keep_times(*inode, info);
  }

  Result<void> skip(const fs::path& source) {
    report_.skipped.push_back(source);
    return {};
  }

 private:
  Result<void> copy(const fs::path& source, int fd, const std::string& target,
                    volume::HandleId handle) {
    for (u64 offset = 0;;) {
      failed = source;
      if (interrupted()) return fail(Errc::canceled, kInterrupted);
      const ssize_t got = ::read(fd, buffer_.data(), buffer_.size());
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return std::unexpected(host_error("cannot be read"));
      failed = target;
      if (got == 0) return {};
      LK_TRY(const u64 wrote,
             volume_.write(handle, offset, Bytes(buffer_).first(static_cast<std::size_t>(got))));
      offset += wrote;
      report_.bytes += wrote;
      progress_.update(report_.bytes, 0, "B");
    }
  }

  Result<void> keep_times(volume::InodeNumber inode, const struct stat& info) {
    LK_TRYV(volume_.set_mode(inode, info.st_mode & 07777));
    return volume_.set_times(inode,
                             i64{info.st_mtim.tv_sec} * 1'000'000'000 + info.st_mtim.tv_nsec);
  }

  const ImageIdentity image_;
  volume::Volume& volume_;
  CopyReport& report_;
  Progress progress_;
  std::vector<std::byte> buffer_;
};

// cp's rule: what is put into a directory keeps its last word, but for "x/." and "x/..", whose
// contents are put.
std::string name_in_directory(std::string source) {
  while (source.size() > 1 && source.ends_with('/')) source.pop_back();
  const std::string name = source.substr(source.rfind('/') + 1);
  return name == "." || name == ".." ? "" : name;
}

// Where the source goes: into a directory that is there, else to that very name.
Result<std::string> place_for(volume::Volume& volume, const std::string& path,
                              const std::string& source, bool directory) {
  const auto there = volume::resolve(volume, path);
  if (!there && there.error().code == Errc::not_found && path.ends_with('/') && !directory)
    return fail(Errc::not_dir, "there is no such directory");
  if (!there) return path;
  LK_TRY(const volume::Stat stat, volume.stat(*there));
  if (stat.kind == volume::FileKind::directory) return join(path, name_in_directory(source));
  if (directory) return fail(Errc::not_dir, "is a file; a directory cannot take its place");
  return path;
}

}  // namespace

Exit run_put(const Common& common, const CopyArgs& args) {
  const auto target = parse_target(args.destination);
  if (!target) return report_usage(common, args.destination, "is not of the form IMG:/path");
  struct stat info{};
  const int found =
      args.recursive ? ::lstat(args.source.c_str(), &info) : ::stat(args.source.c_str(), &info);
  if (found != 0) return report_error(common, args.source, host_error("cannot be read"));
  const bool directory = S_ISDIR(info.st_mode);
  if (directory && !args.recursive)
    return report_usage(common, args.source, "is a directory; -r copies it");
  CopyReport report;
  std::optional<InterruptGuard> guard;  // after the key was read, until the store is closed
  const Exit exit =
      with_volume(common, target->image, args.key, {},
                  [&](volume::Volume& volume, const std::optional<crypto::KeyId>&) {
                    guard.emplace();
                    const auto path = place_for(volume, target->path, args.source, directory);
                    if (!path) return report_error(common, target->path, path.error());
                    Putter putter(common, target->image, volume, report);
                    auto done = args.recursive ? putter.tree(args.source, *path)
                                               : putter.file(args.source, *path, true);
                    if (!done) return report_error(common, putter.failed, done.error());
                    if (auto synced = volume.sync(); !synced)
                      return report_image(common, target->image, synced.error());
                    return Exit::ok;
                  });
  if (exit == Exit::ok) print_report(common, report, "put");
  return exit;
}

}  // namespace latchkey::cli
