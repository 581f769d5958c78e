#include "tests/sim/files.h"

#include <fmt/format.h>

#include "tests/support/keys.h"
#include "volume/paths.h"

namespace latchkey::tests {

namespace {

SecretBytes the_key() {
  static const Heap raw = raw_key(42);
  return in_arena(raw);
}

}  // namespace

Files::Files(std::unique_ptr<volume::Volume> volume) : volume_(std::move(volume)) {}
Files::~Files() = default;

Result<void> Files::format(engine::Device& device, Env& env,
                           const std::vector<std::string>& encrypted,
                           const std::vector<std::string>& plain) {
  volume::MkfsOptions mkfs;
  mkfs.node_bytes = 4096;
  LK_TRYV(volume::Volume::mkfs(device, mkfs, env));
  LK_TRY(auto files, open(device, {.inline_writeback = true}, env));
  LK_TRYV(files->add_key(kUser));
  for (const std::string& path : encrypted) {
    LK_TRY(const auto made, volume::make_directory(*files->volume_, volume::Caller{kUser}, path));
    LK_TRYV(files->volume_->set_policy(volume::Caller{kUser}, made, files->key_));
  }
  for (const std::string& path : plain) LK_TRYV(files->mkdir(path));
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

Result<Files::Removed> Files::remove_key(u32 uid, bool hard) {
  const auto mode = hard ? keymgr::RemovalMode::hard : keymgr::RemovalMode::soft;
  LK_TRY(const auto report, volume_->remove_key(volume::Caller{uid}, key_, mode));
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

Result<void> Files::rename(const std::string& from, const std::string& to, bool no_replace) {
  LK_TRY(const auto source, volume::resolve_parent(*volume_, from));
  LK_TRY(const auto target, volume::resolve_parent(*volume_, to));
  volume::RenameFlags flags;
  flags.no_replace = no_replace;
  return volume_->rename(source.directory, source.name, target.directory, target.name, flags);
}

Result<std::vector<ModelReader::Entry>> Files::list(const std::string& path) {
  LK_TRY(const auto directory, volume::resolve(*volume_, path));
  LK_TRY(const auto entries, volume_->read_directory(directory));
  std::vector<ModelReader::Entry> out;
  for (const auto& entry : entries)
    out.push_back({entry.name, entry.kind == volume::FileKind::directory});
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
