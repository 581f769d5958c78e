#include "tests/support/conformance_world.h"

#include <cstring>
#include <sstream>

#include "base/check.h"
#include "base/env.h"
#include "volume/paths.h"

namespace latchkey::tests {

using namespace volume;  // NOLINT: the whole file is about it

namespace {

constexpr u64 kDeviceBytes = 64 * kMiB;

Caller caller_of(std::string_view uid) {
  if (uid == "root") return {0};
  LK_CHECK(uid.size() == 1 && uid[0] >= 'A' && uid[0] <= 'C');
  return {1001 + static_cast<u32>(uid[0] - 'A')};
}

std::vector<std::string> split(std::string_view text, char at) {
  std::vector<std::string> words;
  std::istringstream in{std::string(text)};
  for (std::string word; std::getline(in, word, at);)
    if (!word.empty()) words.push_back(word);
  return words;
}

OpenFlags flags_of(const std::string& mode) {
  OpenFlags flags;
  flags.write = mode != "r";
  flags.append = mode == "append";
  flags.create = mode == "create" || mode == "make";
  flags.exclusive = mode == "create";
  return flags;
}

}  // namespace

std::string errno_name(int error) {
  const char* name = ::strerrorname_np(error);
  return name == nullptr ? "an errno without a name" : name;
}

u64 option(const std::vector<std::string>& words, std::string_view name, u64 otherwise) {
  for (const std::string& word : words)
    if (word.starts_with(name) && word.size() > name.size() && word[name.size()] == '=')
      return std::stoull(word.substr(name.size() + 1));
  return otherwise;
}

ConformanceWorld::ConformanceWorld(Setting setting, Door door) : setting_(setting), door_(door) {
  make_volume(kDeviceBytes);
}

ConformanceWorld::~ConformanceWorld() = default;

void ConformanceWorld::make_volume(u64 device_bytes) {
  volume_.reset();
  device_ = std::make_unique<SimDevice>(SimConfig{.size_bytes = device_bytes});
  LK_CHECK(Volume::mkfs(*device_, {}, system_env()).has_value());
  LK_CHECK(open_volume(false).has_value());
  // Everybody makes names in the root directory.
  LK_CHECK(volume_->set_mode(kRootInode, 0777).has_value());
}

Result<void> ConformanceWorld::open_volume(bool read_only) {
  if (volume_ != nullptr) LK_TRYV(volume_->close());
  volume_.reset();
  VolumeOptions options;
  options.read_only = read_only;
  options.compat_fscrypt = setting_ == Setting::compat;
  LK_TRY(volume_, Volume::open(*device_, options, system_env()));
  return {};
}

Outcome ConformanceWorld::run(std::string_view uid, std::string_view operation) {
  const Words words = split(operation, ' ');
  const auto verb = verbs().find(words.at(0));
  LK_CHECK_MSG(verb != verbs().end(), "an operation of the table that is not there");
  caller_ = caller_of(uid);
  return (this->*verb->second)(words);
}

const std::map<std::string_view, ConformanceWorld::Verb>& ConformanceWorld::verbs() {
  using World = ConformanceWorld;
  static const std::map<std::string_view, Verb> kVerbs = {
      {"add", &World::add},
      {"add_and_remove", &World::add_and_remove},
      {"remove", &World::remove},
      {"remove_all", &World::remove_all},
      {"status", &World::status},
      {"status_elsewhere", &World::status_elsewhere},
      {"same_key", &World::same_key},
      {"other_key", &World::other_key},
      {"add_until_error", &World::add_until_error},
      {"raw", &World::raw},
      {"v1", &World::v1},
      {"policy", &World::policy},
      {"add_policy_put", &World::add_policy_put},
      {"get_policy", &World::get_policy},
      {"get_nonce", &World::get_nonce},
      {"fresh", &World::fresh},
      {"reopen", &World::reopen},
      {"small_volume", &World::small_volume},
      {"open", &World::open},
      {"hold", &World::hold},
      {"close", &World::close},
      {"open_in", &World::open_in},
      {"put", &World::put},
      {"overwrite", &World::overwrite},
      {"get", &World::get},
      {"get_filled", &World::get_filled},
      {"read", &World::read},
      {"write", &World::write},
      {"append", &World::append},
      {"fill", &World::fill},
      {"truncate", &World::truncate},
      {"truncate_path", &World::truncate_path},
      {"allocate", &World::allocate},
      {"fsync", &World::fsync},
      {"fsync_directory", &World::fsync_directory},
      {"fstat", &World::fstat},
      {"write_until_error", &World::write_until_error},
      {"stat", &World::stat},
      {"list", &World::list},
      {"readlink", &World::readlink},
      {"mkdir", &World::mkdir},
      {"rmdir", &World::rmdir},
      {"unlink", &World::unlink},
      {"unlink_in", &World::unlink_in},
      {"unlink_either", &World::unlink_either},
      {"remove_tree", &World::remove_tree},
      {"mkfifo", &World::mkfifo},
      {"symlink", &World::symlink},
      {"chmod", &World::chmod},
      {"utimes", &World::utimes},
      {"setxattr", &World::setxattr},
      {"rename", &World::rename},
      {"exchange", &World::exchange},
      {"link", &World::link},
      {"link_handle", &World::link_handle},
      {"keep_name", &World::keep_name},
      {"race_writer", &World::race_writer},
      {"race_claims", &World::race_claims},
      {"race_told", &World::race_told},
      {"race_size", &World::race_size},
      {"race_content", &World::race_content},
      {"race_users", &World::race_users},
  };
  return kVerbs;
}

// --- what operations are made of -----------------------------------------------------------------

ConformanceWorld::Key& ConformanceWorld::key(const std::string& name, std::size_t size, u64 seed) {
  const auto found = keys_.find(name);
  if (found != keys_.end()) return found->second;
  const u64 number = ++keys_made_;
  Key made{raw_key(seed == 0 ? number : seed, size), {}};
  if (size >= crypto::kMasterKeyBytesMin && size <= crypto::kMasterKeyBytesMax)
    made.id = needles_of(made.raw).id;
  return keys_.emplace(name, std::move(made)).first->second;
}

Result<crypto::KeyId> ConformanceWorld::add(Caller caller, Key& key) {
  const auto given = [&] { return key.raw.empty() ? SecretBytes() : in_arena(key.raw); };
  LK_TRY(const crypto::KeyId id,
         door_ == Door::bytes ? add_bytes(caller, key.raw) : volume_->add_key(caller, given()));
  LK_CHECK(key.id == crypto::KeyId{} || key.id == id);
  key.id = id;
  return id;
}

Result<ConformanceWorld::Removed> ConformanceWorld::remove(const crypto::KeyId& id,
                                                           bool all_users) {
  if (door_ == Door::bytes) return remove_bytes(id, all_users);
  LK_TRY(const RemovalReport report,
         volume_->remove_key(caller_, id, keymgr::RemovalMode::soft, all_users));
  return Removed{report.files_busy, report.other_users};
}

Result<void> ConformanceWorld::set_policy(InodeId directory, const crypto::KeyId& id) {
  if (door_ == Door::bytes) return set_policy_bytes(directory, id);
  return volume_->set_policy(caller_, directory, id);
}

// "@x" is the name under which `directory` lists what was made as x.
Result<std::string> ConformanceWorld::shown_name(InodeId directory, const std::string& called) {
  if (!called.starts_with('@')) return called;
  if (const auto kept = kept_names_.find(called); kept != kept_names_.end()) return kept->second;
  LK_TRY(const auto entries, volume_->read_directory(directory));
  for (const DirEntry& entry : entries)
    if (entry.inode == called_.at(called.substr(1))) return entry.name;
  return fail(Errc::not_found, "the directory does not list it");
}

Result<ConformanceWorld::Place> ConformanceWorld::place(const std::string& path) {
  const Words words = split(path, '/');
  Place found{kRootInode, {}};
  for (std::size_t i = 0; i < words.size(); ++i) {
    LK_TRY(found.name, shown_name(found.directory, words[i]));
    if (i + 1 == words.size()) break;
    LK_TRY(found.directory, volume_->lookup(found.directory, found.name));
  }
  return found;
}

Result<InodeId> ConformanceWorld::inode(const std::string& path) {
  LK_TRY(const Place found, place(path));
  if (found.name.empty()) return found.directory;
  return volume_->lookup(found.directory, found.name);
}

Result<HandleId> ConformanceWorld::open_at(InodeId directory, const std::string& name,
                                           const std::string& mode, const std::string& path) {
  return volume_->open_file(caller_, directory, name, flags_of(mode), 0644, path);
}

Result<HandleId> ConformanceWorld::open_path(const std::string& path, const std::string& mode) {
  if (mode == "directory") {
    LK_TRY(const InodeId directory, inode(path));
    return volume_->open_directory(caller_, directory, path);
  }
  if (mode == "unnamed") {
    LK_TRY(const InodeId directory, inode(path));
    return volume_->open_unnamed(caller_, directory, {.write = true}, 0644, path);
  }
  LK_TRY(const Place found, place(path));
  return open_at(found.directory, found.name, mode, path);
}

Result<InodeId> ConformanceWorld::make_directory(const std::string& path) {
  LK_TRY(const Place found, place(path));
  return volume_->mkdir(caller_, found.directory, found.name, 0777);
}

Result<u64> ConformanceWorld::put_text(const std::string& path, const std::string& mode,
                                       const std::string& text) {
  LK_TRY(const HandleId handle, open_path(path, mode));
  const auto wrote = volume_->write(handle, 0, std::as_bytes(std::span(text)));
  const auto closed = volume_->close_handle(handle);
  LK_TRYV(closed);
  return wrote;
}

Result<std::string> ConformanceWorld::get_text(const std::string& path, std::size_t size) {
  LK_TRY(const HandleId handle, open_path(path, "r"));
  std::string text(size, '?');
  const auto got = volume_->read(handle, 0, std::as_writable_bytes(std::span(text)));
  const auto closed = volume_->close_handle(handle);
  LK_TRY(const u64 bytes, got);
  LK_TRYV(closed);
  text.resize(bytes);
  return text;
}

}  // namespace latchkey::tests
