#pragma once
// What the tests that mirror fstests share: a volume with our own answers (false) or with the
// kernel's (true: compat_fscrypt), and its verbs by path.

#include <algorithm>
#include <string>
#include <vector>

#include "tests/support/volume_fixture.h"

namespace latchkey::tests {

class Fstest : public VolumeTest, public ::testing::WithParamInterface<bool> {
 protected:
  using VolumeTest::open_error;
  using VolumeTest::VolumeTest;
  void SetUp() override {
    options_.compat_fscrypt = compat();
    VolumeTest::SetUp();
  }
  static bool compat() { return GetParam(); }
  // What a plaintext name answers while its directory is locked: the kernel's ENOENT, or ENOKEY.
  static Errc locked_name() { return compat() ? Errc::not_found : Errc::no_key; }

  crypto::KeyId add_key_of(u8 tag, volume::Caller caller = kUser) {
    auto id = volume_->add_key(caller, master_key(tag));
    EXPECT_TRUE(id);
    return id.value_or(crypto::KeyId{});
  }
  volume::InodeId directory(std::string_view path) {
    const auto made = volume::make_directory(*volume_, kUser, path);
    EXPECT_TRUE(made) << path << ": " << (made ? "" : made.error().what);
    return made.value_or(volume::InodeId{});
  }
  volume::InodeId directory_under(std::string_view path, const crypto::KeyId& id) {
    const volume::InodeId made = directory(path);
    EXPECT_EQ(code_of(volume_->set_policy(kUser, made, id)), Errc{}) << path;
    return made;
  }
  volume::InodeId inode(std::string_view path) {
    const auto found = volume::resolve(*volume_, path);
    EXPECT_TRUE(found) << path << ": " << (found ? "" : found.error().what);
    return found.value_or(volume::InodeId{});
  }
  Errc lookup_error(std::string_view path) { return code_of(volume::resolve(*volume_, path)); }
  std::vector<volume::DirEntry> entries(volume::InodeId in) {
    auto list = volume_->read_directory(in);
    EXPECT_TRUE(list);
    return list.value_or(std::vector<volume::DirEntry>{});
  }
  std::vector<std::string> names(volume::InodeId in) {
    std::vector<std::string> all;
    for (const volume::DirEntry& entry : entries(in)) all.push_back(entry.name);
    std::ranges::sort(all);
    return all;
  }
  // The only name of that kind, as it is listed now.
  std::string name_of_kind(volume::InodeId in, volume::FileKind kind) {
    std::string name;
    for (const volume::DirEntry& entry : entries(in)) {
      if (entry.kind != kind) continue;
      EXPECT_EQ(name, "") << "there are several";
      name = entry.name;
    }
    EXPECT_NE(name, "") << "there is none";
    return name;
  }
  Errc open_error(volume::InodeId in, std::string_view name, volume::OpenFlags flags = {}) {
    const auto handle = volume_->open_file(kUser, in, name, flags, 0600, std::string(name));
    if (handle) {
      close(*handle);
    }
    return code_of(handle);
  }
  Errc link_error(volume::InodeId what, volume::InodeId into, std::string_view name) {
    return code_of(volume_->link(what, into, name));
  }
  // Nobody is inside any more: our last close has ended the removal, the kernel's has not.
  void finish_removal(const crypto::KeyId& id) {
    if (compat() && state(id) != keymgr::KeyState::absent) remove(id);
    EXPECT_EQ(state(id), keymgr::KeyState::absent);
  }
  struct Name {
    volume::InodeId directory;
    std::string_view name;
  };
  Errc rename_error(Name from, Name to, volume::RenameFlags flags = {}) {
    return code_of(volume_->rename(from.directory, from.name, to.directory, to.name, flags));
  }
  Errc exchange_error(Name from, Name to) { return rename_error(from, to, {.exchange = true}); }
};

inline std::string setting_name(const ::testing::TestParamInfo<bool>& setting) {
  return setting.param ? "compat" : "ours";
}

}  // namespace latchkey::tests
