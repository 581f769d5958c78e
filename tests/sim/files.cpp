#include "tests/sim/files.h"

#include <fmt/format.h>

#include "tests/support/keys.h"
#include "volume/paths.h"

namespace latchkey::tests {

namespace {

constexpr u64 kSuspendedNs = 2'000'000;  // virtual

SecretBytes the_key() {
  static const Heap raw = raw_key(42);
  return in_arena(raw);
}

}  // namespace

Files::Files(std::unique_ptr<volume::Volume> volume) : volume_(std::move(volume)) {}
Files::~Files() = default;

Result<void> Files::format(engine::Device& device, Env& env, const std::vector<Top>& tops) {
  volume::MkfsOptions mkfs;
  mkfs.node_bytes = 4096;
  LK_TRYV(volume::Volume::mkfs(device, mkfs, env));
  LK_TRY(auto files, open(device, {.inline_writeback = true}, env));
  LK_TRYV(files->add_key(kUser));
  for (const Top& top : tops) {
    if (top.subvolume) {
      LK_TRYV(files->make_subvolume(top.path));
    } else {
      LK_TRYV(files->mkdir(top.path));
    }
    if (!top.encrypted) continue;
    LK_TRY(const auto made, volume::resolve(*files->volume_, top.path));
    LK_TRYV(files->volume_->set_policy(volume::Caller{kUser}, made, files->key_));
  }
  return files->close();
}

Result<std::unique_ptr<Files>> Files::open(engine::Device& device, const FilesOptions& options,
                                           Env& env) {
  volume::VolumeOptions how;
  how.inline_writeback = options.inline_writeback;
  how.writeback_workers = options.workers;
  how.commit_interval_ms = options.commit_interval_ms;
  how.dirty_bytes_max = 1 * kMiB;
  how.key_slots = 16;
  LK_TRY(auto volume, volume::Volume::open(device, how, env));
  return std::unique_ptr<Files>(new Files(std::move(volume)));
}

Result<void> Files::close() { return volume_->close(); }

Result<void> Files::add_key(u32 uid) {
  LK_TRY(key_, volume_->add_key(volume::Caller{uid}, the_key()));
  return {};
}

Result<Files::Removed> Files::remove_key(u32 uid, keymgr::RemovalMode mode) {
  volume::RemovalRequest request{.mode = mode};
  if (mode == keymgr::RemovalMode::suspend) request.deadline_ns = kSuspendedNs;
  LK_TRY(const auto report, volume_->remove_key(volume::Caller{uid}, key_, request));
  return Removed{report.bytes_lost, report.files_busy};
}

Result<Files::File> Files::open_file(const std::string& path, volume::OpenFlags flags) {
  return volume::open_path(*volume_, volume::Caller{kUser}, path, flags);
}

Result<void> Files::close_file(File file) { return volume_->close_handle(file); }

Result<void> Files::write(File file, u64 offset, Bytes bytes) {
  const auto wrote = volume_->write(file, offset, bytes);
  if (!wrote) return std::unexpected(wrote.error());
  return {};
}

Result<u64> Files::append(File file, Bytes bytes) { return volume_->append(file, bytes); }

Result<u64> Files::read(File file, u64 offset, MutableBytes into) {
  return volume_->read(file, offset, into);
}

Result<void> Files::truncate(File file, u64 size) { return volume_->truncate(file, size); }
Result<void> Files::punch(File file, u64 offset, u64 length) {
  return volume_->punch(file, offset, length);
}
Result<void> Files::allocate(File file, u64 offset, u64 length, bool keep_size) {
  return volume_->allocate(file, offset, length, keep_size);
}
Result<void> Files::clone(File from, File to, const Range& range) {
  return volume_->clone_range(from, range.from, to, range.to, range.length);
}
Result<void> Files::fsync(File file) { return volume_->fsync(file); }
Result<void> Files::sync() { return volume_->sync(); }

bool Files::stopped() { return !sync() && !sync(); }

Result<void> Files::mkdir(const std::string& path) {
  const auto made = volume::make_directory(*volume_, volume::Caller{kUser}, path);
  if (!made) return std::unexpected(made.error());
  return {};
}

Result<void> Files::rmdir(const std::string& path) {
  LK_TRY(const auto parent, volume::resolve_parent(*volume_, path));
  return volume_->rmdir(parent.directory, parent.name);
}

Result<void> Files::unlink(const std::string& path) {
  LK_TRY(const auto parent, volume::resolve_parent(*volume_, path));
  return volume_->unlink(parent.directory, parent.name);
}

Result<void> Files::rename(const std::string& from, const std::string& to,
                           volume::RenameFlags flags) {
  LK_TRY(const auto source, volume::resolve_parent(*volume_, from));
  LK_TRY(const auto target, volume::resolve_parent(*volume_, to));
  return volume_->rename(source.directory, source.name, target.directory, target.name, flags);
}

Result<void> Files::link(const std::string& from, const std::string& to) {
  LK_TRY(const auto inode, volume::resolve(*volume_, from));
  LK_TRY(const auto target, volume::resolve_parent(*volume_, to));
  return volume_->link(inode, target.directory, target.name);
}

Result<void> Files::link(File unnamed, const std::string& to) {
  LK_TRY(const auto target, volume::resolve_parent(*volume_, to));
  return volume_->link(unnamed, target.directory, target.name);
}

Result<void> Files::symlink(const std::string& path, const std::string& target) {
  LK_TRY(const auto place, volume::resolve_parent(*volume_, path));
  const auto made = volume_->symlink(volume::Caller{kUser}, place.directory, place.name, target);
  if (!made) return std::unexpected(made.error());
  return {};
}

Result<std::vector<std::byte>> Files::read_link(const std::string& path) {
  LK_TRY(const auto inode, volume::resolve(*volume_, path));
  LK_TRY(const std::string target, volume_->read_link(inode));
  const auto bytes = std::as_bytes(std::span(target));
  return std::vector<std::byte>(bytes.begin(), bytes.end());
}

Result<Files::File> Files::open_unnamed(const std::string& directory) {
  LK_TRY(const auto inode, volume::resolve(*volume_, directory));
  return volume_->open_unnamed(volume::Caller{kUser}, inode, {.write = true}, 0600, "");
}

Result<void> Files::make_subvolume(const std::string& path) {
  LK_TRY(const auto place, volume::resolve_parent(*volume_, path));
  const auto made =
      volume_->create_subvolume(volume::Caller{kUser}, place.directory, place.name, 0755);
  if (!made) return std::unexpected(made.error());
  return {};
}

Result<void> Files::snapshot(const std::string& source, const std::string& path, bool read_only) {
  LK_TRY(const auto root, volume::resolve(*volume_, source));
  LK_TRY(const auto place, volume::resolve_parent(*volume_, path));
  const auto made =
      volume_->snapshot(volume::Caller{kUser}, root, place.directory, place.name, read_only);
  if (!made) return std::unexpected(made.error());
  return {};
}

Result<void> Files::remove_subvolume(const std::string& path) {
  LK_TRY(const auto place, volume::resolve_parent(*volume_, path));
  return volume_->remove_subvolume(place.directory, place.name);
}

Result<void> Files::finish_removals() { return volume_->finish_removals(); }

Result<u64> Files::scrub() {
  LK_TRY(const auto report, volume_->scrub({}));
  u64 wrong = report.store.bad_blocks_count;
  for (const engine::Finding& finding : report.store.findings) {
    const bool superblock = std::string_view(finding.what).starts_with("a superblock copy");
    if (!superblock || !finding.repairable) ++wrong;
  }
  return wrong;
}

Result<std::vector<ModelReader::Entry>> Files::list(const std::string& path) {
  LK_TRY(const auto directory, volume::resolve(*volume_, path));
  LK_TRY(const auto entries, volume_->read_directory(directory));
  std::vector<ModelReader::Entry> out;
  for (const auto& entry : entries) {
    const bool below =
        entry.kind == volume::FileKind::directory || entry.kind == volume::FileKind::subvolume;
    out.push_back({entry.name, below, entry.kind == volume::FileKind::symlink, entry.inode.number});
  }
  return out;
}

Result<std::vector<std::byte>> Files::read_all(File file) {
  LK_TRY(const auto stat, volume_->stat(file));
  std::vector<std::byte> bytes(stat.size);
  for (u64 at = 0; at < bytes.size();) {
    LK_TRY(const u64 count, volume_->read(file, at, std::span(bytes).subspan(at)));
    if (count == 0) return fail(Errc::invalid, "a file is shorter than its size says", at);
    at += count;
  }
  return bytes;
}

ModelReader Files::reader(const std::string& root) {
  ModelReader reader;
  reader.list = [this, root](const std::string& path) { return list(root + "/" + path); };
  reader.read = [this, root](const std::string& path) -> Result<std::vector<std::byte>> {
    LK_TRY(const File file, open_file(root + "/" + path, {}));
    auto bytes = read_all(file);
    LK_TRYV(close_file(file));
    return bytes;
  };
  reader.read_link = [this, root](const std::string& path) { return read_link(root + "/" + path); };
  return reader;
}

Result<std::vector<std::string>> check_files(engine::Device& device, NonceLedger& ledger) {
  LK_TRY(const auto check, volume::check_volume(device, {}, system_env()));
  std::vector<std::string> wrong;
  for (const engine::Finding& finding : check.findings)
    wrong.push_back(fmt::format("check: {}: {}", finding.where, finding.what));
  LK_TRY(const auto reused, observe_device(ledger, device));
  for (const std::string& what : reused) wrong.push_back("nonce ledger: " + what);
  return wrong;
}

}  // namespace latchkey::tests
