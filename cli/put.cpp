// put: files of the host into the store, as cp does.

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <map>
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

namespace {

Exit exit_of(const CopyReport& report) {
  if (report.failed.empty()) return Exit::ok;
  const bool denied = std::ranges::any_of(report.failed, [](const CopyFailure& failure) {
    return failure.error.code == Errc::permission;
  });
  return denied ? Exit::denied : Exit::usage;
}

nlohmann::json describe_report(const CopyReport& report) {
  nlohmann::json failed = nlohmann::json::array();
  for (const CopyFailure& failure : report.failed)
    failed.push_back({{"subject", failure.name},
                      {"message", describe(failure.error)},
                      {"code", name_of(failure.error.code)}});
  nlohmann::json left = nlohmann::json::array();
  for (const LeftAttribute& one : report.left_attributes)
    left.push_back({{"path", one.path}, {"name", one.name}, {"message", one.why}});
  nlohmann::json skipped = nlohmann::json::array();
  for (const Skipped& one : report.skipped) skipped.push_back(one.name);
  nlohmann::json body = {{"files", report.files},
                         {"directories", report.directories},
                         {"symlinks", report.symlinks},
                         {"hard_links", report.hard_links},
                         {"special", report.special},
                         {"bytes", report.bytes},
                         {"skipped", skipped},
                         {"attributes_left", left},
                         {"failed", failed}};
  if (!failed.empty()) {
    body["error"] = failed.front();
    body["error"]["exit"] = static_cast<int>(exit_of(report));
  }
  return body;
}

}  // namespace

Exit print_report(const Common& common, const CopyReport& report, std::string_view done) {
  const Exit exit = exit_of(report);
  if (common.json) print_json(common, describe_report(report));
  if (common.json || common.quiet) return exit;
  fmt::print("{} {} files and {} directories, {}", done, report.files, report.directories,
             format_bytes(report.bytes));
  const auto further = [](u64 count, std::string_view what) {
    if (count != 0) fmt::print(", {} {}", count, what);
  };
  further(report.symlinks, "symlinks");
  further(report.hard_links, "hard links");
  further(report.special, "special files");
  fmt::print("\n");
  static constexpr std::size_t kNamed = 10;
  for (std::size_t i = 0; i < std::min(kNamed, report.skipped.size()); ++i)
    fmt::print("skipped {}: {}\n", report.skipped[i].name, report.skipped[i].why);
  if (report.skipped.size() > kNamed)
    fmt::print("skipped {} more (--json names all)\n", report.skipped.size() - kNamed);
  if (!report.left_attributes.empty()) {
    const LeftAttribute& first = report.left_attributes.front();
    fmt::print("attributes that could not be set: {}, the first is {} of {}: {}\n",
               report.left_attributes.size(), first.name, first.path, first.why);
  }
  if (!report.failed.empty()) fmt::print("failed: {}\n", report.failed.size());
  return exit;
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
      : common_(common),
        image_(image),
        volume_(volume),
        report_(report),
        progress_(common, "put"),
        buffer_(kChunkBytes) {}

  // `failed` is the name that an error is about.
  std::string failed;

  // A source that was named is followed if it is a symlink, and read to its end if it is a pipe;
  // one that has no data otherwise is skipped.
  Result<void> file(const fs::path& source, const std::string& target, bool named) {
    of_source_ = false;
    failed = source;
    if (interrupted()) return fail(Errc::canceled, kInterrupted);
    HostFile host;
    struct stat info{};
    LK_TRYV(open_source(source, named, host, info));
    const bool pipe = named && S_ISFIFO(info.st_mode);
    if (!S_ISREG(info.st_mode) && !pipe) return skip(source);
    if (auto other = image_.refuse(info); !other) return of_source(source, other.error());
    volume::OpenFlags open_flags;
    failed = target;
    open_flags.write = open_flags.create = open_flags.truncate = true;
    auto opened = volume::open_path(volume_, caller(), target, open_flags, info.st_mode & 07777);
    if (!opened && !named && is_no_file(opened.error())) {
      LK_TRYV(make_way(target));
      opened = volume::open_path(volume_, caller(), target, open_flags, info.st_mode & 07777);
    }
    LK_TRY(const volume::HandleId handle, std::move(opened));
    const Ends ends{source, host.fd, pipe, target, handle};
    // What takes less room than it is long has holes.
    const bool sparse = !pipe && u64(info.st_blocks) * 512 < u64(info.st_size);
    auto copied = sparse ? copy_data(ends) : copy(ends, 0, ~u64{0});
    const auto stat = volume_.stat(handle);
    auto closed = volume_.close_handle(handle);
    if (!copied) return std::unexpected(copied.error());
    LK_TRYV(closed);
    if (!stat) return std::unexpected(stat.error());
    LK_TRYV(named ? keep_times(stat->inode, info) : keep_attributes(stat->inode, source, info));
    if (!named && info.st_nlink > 1) put_[{info.st_dev, info.st_ino}] = stat->inode;
    ++report_.files;
    return {};
  }

  // What cannot be read below the source is told and left out; an error of the store ends it.
  Result<void> tree(const fs::path& source, const std::string& target) {
    of_source_ = false;
    failed = source;
    if (interrupted()) return fail(Errc::canceled, kInterrupted);
    struct stat info{};
    if (::lstat(source.c_str(), &info) != 0) return of_source(source, host_error("cannot be read"));
    if (!S_ISDIR(info.st_mode)) return leaf(source, target, info);
    std::error_code error;
    std::vector<fs::path> names;
    for (fs::directory_iterator at(source, error), end; !error && at != end; at.increment(error))
      names.push_back(at->path());
    if (error) {
      errno = error.value();
      return of_source(source, host_error("the directory cannot be read"));
    }
    failed = target;
    auto inode = volume::make_directory(volume_, caller(), target, info.st_mode & 07777);
    if (!inode && inode.error().code == Errc::exists) inode = volume::resolve(volume_, target);
    if (!inode) return std::unexpected(inode.error());
    ++report_.directories;
    std::ranges::sort(names);
    for (const fs::path& name : names) {
      auto put = tree(name, join(target, name.filename()));
      if (!put && !of_source_) return put;
      if (!put) tell_failure(put.error());
    }
    failed = target;
    return keep_attributes(*inode, source, info);
  }

  Result<void> skip(const fs::path& source) {
    report_.skipped.push_back({source, "has no data to put; -r puts it as what it is"});
    return {};
  }

 private:
  // Anything but a directory, as what it is; under a further name of a file that was put, as one.
  Result<void> leaf(const fs::path& source, const std::string& target, const struct stat& info) {
    if (info.st_nlink > 1) {
      const auto found = put_.find({info.st_dev, info.st_ino});
      if (found != put_.end()) return hard_link(found->second, target);
    }
    if (S_ISREG(info.st_mode)) return file(source, target, false);
    std::string text;
    if (S_ISLNK(info.st_mode)) {
      std::error_code error;
      text = fs::read_symlink(source, error).string();
      if (error) {
        errno = error.value();
        return of_source(source, host_error("cannot be read"));
      }
    }
    failed = target;
    LK_TRY(const volume::InodeId made, at_free_place(target, [&](const auto& place) {
             if (S_ISLNK(info.st_mode))
               return volume_.symlink(caller(), place.directory, place.name, text);
             return volume_.make_node(caller(), place.directory, place.name, node_of(info));
           }));
    LK_TRYV(keep_attributes(made, source, info));
    if (info.st_nlink > 1) put_[{info.st_dev, info.st_ino}] = made;
    ++(S_ISLNK(info.st_mode) ? report_.symlinks : report_.special);
    return {};
  }

  static volume::NewNode node_of(const struct stat& info) {
    volume::NewNode node;
    node.mode = info.st_mode & 07777;
    node.kind = S_ISFIFO(info.st_mode)   ? volume::FileKind::fifo
                : S_ISSOCK(info.st_mode) ? volume::FileKind::socket
                : S_ISCHR(info.st_mode)  ? volume::FileKind::char_device
                                         : volume::FileKind::block_device;
    if (volume::is_device(node.kind)) node.device = info.st_rdev;
    return node;
  }

  Result<void> hard_link(volume::InodeId inode, const std::string& target) {
    failed = target;
    const auto there = volume::resolve(volume_, target);
    if (!there || *there != inode)
      LK_TRYV(at_free_place(target, [&](const auto& place) {
        return volume_.link(inode, place.directory, place.name);
      }));
    ++report_.hard_links;
    return {};
  }

  // As cp does: what is no file replaces what has its name, but for a directory.
  auto at_free_place(const std::string& target, auto make)
      -> decltype(make(std::declval<const volume::ParentAndName&>())) {
    LK_TRY(const volume::ParentAndName place, volume::resolve_parent(volume_, target));
    auto made = make(place);
    if (made || made.error().code != Errc::exists) return made;
    LK_TRYV(volume_.unlink(place.directory, place.name));
    return make(place);
  }
  Result<void> make_way(const std::string& target) {
    LK_TRY(const volume::ParentAndName place, volume::resolve_parent(volume_, target));
    return volume_.unlink(place.directory, place.name);
  }
  static bool is_no_file(const Error& error) {
    return error.code == Errc::is_symlink || error.code == Errc::unsupported;
  }

  struct Ends {
    const fs::path& source;
    int fd;
    bool pipe;
    const std::string& target;
    volume::HandleId handle;
  };

  std::unexpected<Error> of_source(const fs::path& source, const Error& error) {
    failed = source;
    of_source_ = true;
    return std::unexpected(error);
  }

  void tell_failure(const Error& error) {
    Common in_words = common_;
    in_words.json = false;
    report_error(in_words, failed, error);
    report_.failed.push_back({failed, error});
  }

  Result<void> open_source(const fs::path& source, bool named, HostFile& host, struct stat& info) {
    // O_NONBLOCK: the open of a pipe would wait for its writer, and not hear a signal.
    host.fd = ::open(source.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | (named ? 0 : O_NOFOLLOW));
    if (host.fd < 0 || ::fstat(host.fd, &info) != 0)
      return of_source(source, host_error("cannot be read"));
    return {};
  }

  // Until a pipe has data, or had a writer and has none any more.
  static Result<void> wait_for_data(int pipe) {
    static constexpr int kLookUpMs = 200;
    pollfd waited{pipe, POLLIN, 0};
    while (::poll(&waited, 1, kLookUpMs) <= 0)
      if (interrupted()) return fail(Errc::canceled, kInterrupted);
    return {};
  }

  // Copies from where the source stands, in the target from `offset` to `end` or to the source's
  // end. The offset where it stopped.
  Result<u64> copy(const Ends& ends, u64 offset, u64 end) {
    while (offset < end) {
      failed = ends.source;
      if (interrupted()) return fail(Errc::canceled, kInterrupted);
      const u64 size = std::min<u64>(buffer_.size(), end - offset);
      if (ends.pipe) LK_TRYV(wait_for_data(ends.fd));
      const ssize_t got = ::read(ends.fd, buffer_.data(), size);
      if (got < 0 && (errno == EINTR || errno == EAGAIN)) continue;
      if (got < 0) return of_source(ends.source, host_error("cannot be read"));
      failed = ends.target;
      if (got == 0) break;
      LK_TRY(const u64 wrote, volume_.write(ends.handle, offset,
                                            Bytes(buffer_).first(static_cast<std::size_t>(got))));
      offset += wrote;
      report_.bytes += wrote;
      progress_.update(report_.bytes, 0, "B");
    }
    return offset;
  }

  // Copies what is not a hole; the target, which is empty, gets its size.
  Result<u64> copy_data(const Ends& ends) {
    u64 offset = 0;
    for (;;) {
      const off_t data = ::lseek(ends.fd, static_cast<off_t>(offset), SEEK_DATA);
      if (data < 0 && errno == ENXIO) break;  // no more of it
      const off_t hole = data < 0 ? -1 : ::lseek(ends.fd, data, SEEK_HOLE);
      // A file system that knows no holes: all the rest is data.
      const u64 first = hole < 0 ? offset : static_cast<u64>(data);
      const u64 end = hole < 0 ? ~u64{0} : static_cast<u64>(hole);
      if (::lseek(ends.fd, static_cast<off_t>(first), SEEK_SET) < 0)
        return of_source(ends.source, host_error("cannot be read"));
      LK_TRY(offset, copy(ends, first, end));
      if (offset < end) return offset;  // its end came earlier than it said
    }
    const off_t size = ::lseek(ends.fd, 0, SEEK_END);
    if (size < 0) return of_source(ends.source, host_error("cannot be read"));
    failed = ends.target;
    if (static_cast<u64>(size) > offset)
      LK_TRYV(volume_.truncate(ends.handle, static_cast<u64>(size)));
    return static_cast<u64>(size);
  }

  Result<void> keep_times(volume::InodeId inode, const struct stat& info) {
    const i64 mtime_ns = i64{info.st_mtim.tv_sec} * 1'000'000'000 + info.st_mtim.tv_nsec;
    return volume_.set_attributes(inode, {.mode = info.st_mode & 07777, .mtime_ns = mtime_ns});
  }

  Result<void> keep_attributes(volume::InodeId inode, const fs::path& source,
                               const struct stat& info) {
    auto kept = put_attributes(volume_, inode, source, info);
    if (!kept && kept.error().os_errno != 0) return of_source(source, kept.error());
    return kept;
  }

  const Common& common_;
  const ImageIdentity image_;
  volume::Volume& volume_;
  CopyReport& report_;
  Progress progress_;
  std::vector<std::byte> buffer_;
  bool of_source_ = false;  // the last error is the source's, not the store's
  // What has several names on the host and was put under one.
  std::map<std::pair<dev_t, ino_t>, volume::InodeId> put_;
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
  return exit == Exit::ok ? print_report(common, report, "put") : exit;
}

}  // namespace latchkey::cli
