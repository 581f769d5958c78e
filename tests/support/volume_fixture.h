#pragma once
// A volume on a SimDevice that is checked offline when a test ends, and its verbs with the
// uninteresting parts expected to work.

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "tests/support/keys.h"
#include "tests/support/sim_device.h"
#include "volume/paths.h"

namespace latchkey::tests {

inline constexpr volume::Caller kUser{1000};

inline SecretBytes master_key(u8 tag) { return in_arena(Heap(64, std::byte{tag})); }

inline Bytes bytes_of(std::string_view text) { return std::as_bytes(std::span(text)); }

template <class T>
Errc code_of(const Result<T>& result) {
  return result ? Errc{} : result.error().code;
}

class VolumeTest : public ::testing::Test {
 protected:
  explicit VolumeTest(const SimConfig& device = {.size_bytes = 128 * kMiB}) : device_(device) {}
  void SetUp() override {
    auto made = volume::Volume::mkfs(device_, {}, system_env());
    ASSERT_TRUE(made) << made.error().what;
    reopen();
  }
  void TearDown() override {
    if (!volume_) return;
    EXPECT_TRUE(volume_->close());
    volume_.reset();
    expect_clean();
  }
  void open_again() {
    auto opened = volume::Volume::open(device_, options_, system_env());
    ASSERT_TRUE(opened) << opened.error().what;
    volume_ = std::move(*opened);
  }
  void reopen() {
    if (volume_) {
      EXPECT_TRUE(volume_->close());
    }
    volume_.reset();
    open_again();
  }
  // The power goes; what was not committed is lost, dropped or torn by the seed.
  void crash(u64 seed) {
    volume_.reset();
    device_.crash(seed);
    open_again();
  }
  void expect_clean() {
    engine::CheckOptions options;
    options.data = true;
    auto check = volume::check_volume(device_, options, system_env());
    ASSERT_TRUE(check) << check.error().what;
    for (const engine::Finding& finding : check->findings)
      ADD_FAILURE() << finding.where << ": " << finding.what;
  }
  crypto::KeyId add_key(volume::Caller caller = kUser) {
    auto id = volume_->add_key(caller, master_key(7));
    EXPECT_TRUE(id);
    return *id;
  }
  // The directory /vault under the key.
  crypto::KeyId vault() {
    const crypto::KeyId id = add_key();
    auto directory = make_directory(*volume_, kUser, "/vault");
    EXPECT_TRUE(directory);
    EXPECT_TRUE(volume_->set_policy(kUser, *directory, id));
    return id;
  }
  volume::HandleId open(std::string_view path,
                        volume::OpenFlags flags = {.write = true, .create = true}) {
    auto handle = open_path(*volume_, kUser, path, flags);
    EXPECT_TRUE(handle) << path << ": " << handle.error().what;
    return handle ? *handle : volume::HandleId{};
  }
  // Every second page of 6000: no two share an entry of the map, which grows to many nodes.
  void write_map_of_many_nodes(volume::HandleId handle) {
    for (u64 page = 0; page < 6000; page += 2)
      ASSERT_TRUE(volume_->write(handle, page * engine::kBlockBytes, bytes_of("x")));
  }
  Errc open_error(std::string_view path) {
    auto handle = open_path(*volume_, kUser, path, {});
    EXPECT_FALSE(handle) << path;
    return code_of(handle);
  }
  void append(volume::HandleId handle, std::string_view text) {
    auto wrote = volume_->append(handle, bytes_of(text));
    EXPECT_TRUE(wrote) << wrote.error().what;
  }
  void close(volume::HandleId handle) {
    auto closed = volume_->close_handle(handle);
    EXPECT_TRUE(closed) << closed.error().what;
  }
  void put(std::string_view path, std::string_view text) {
    const volume::HandleId handle = open(path);
    EXPECT_TRUE(volume_->write(handle, 0, bytes_of(text)));
    close(handle);
  }
  std::string content(volume::HandleId handle) {
    auto stat = volume_->stat(handle);
    EXPECT_TRUE(stat);
    std::string text(stat->size, '?');
    auto read = volume_->read(handle, 0, std::as_writable_bytes(std::span(text)));
    EXPECT_TRUE(read) << read.error().what;
    EXPECT_EQ(read.value_or(0), text.size());
    return text;
  }
  std::string content(std::string_view path) {
    const volume::HandleId handle = open(path, {});
    std::string text = content(handle);
    close(handle);
    return text;
  }
  Errc read_error(volume::HandleId handle, u64 offset = 0) {
    std::byte byte{};
    return code_of(volume_->read(handle, offset, {&byte, 1}));
  }
  volume::RemovalReport remove(const crypto::KeyId& id,
                               keymgr::RemovalMode mode = keymgr::RemovalMode::soft) {
    auto report = volume_->remove_key(kUser, id, mode);
    EXPECT_TRUE(report) << report.error().what;
    return report ? *report : volume::RemovalReport{};
  }
  keymgr::KeyState state(const crypto::KeyId& id) { return volume_->key_status(kUser, id).state; }

  SimDevice device_;
  volume::VolumeOptions options_;
  std::unique_ptr<volume::Volume> volume_;
};

}  // namespace latchkey::tests
