#include "tests/support/image_program.h"

#include <cstdio>
#include <string>

#include "base/check.h"
#include "tests/support/image_opening.h"
#include "tests/support/keys.h"
#include "tests/support/sim_device.h"
#include "volume/paths.h"

namespace latchkey::tests {

namespace {

using namespace volume;  // NOLINT: the whole file is about it

constexpr Caller kCaller{1000};
constexpr std::size_t kCallsMax = 64;
constexpr std::size_t kChoicesMax = 24;
constexpr std::size_t kHandlesMax = 6;
constexpr std::size_t kDataBytesMax = 40000;

class Program {
 public:
  Program(SimDevice& device, Env& env) : device_(device), env_(env), data_(kDataBytesMax) {
    for (std::size_t i = 0; i < data_.size(); ++i) data_[i] = static_cast<std::byte>(i / 7);
  }

  bool open() {
    auto opened = Volume::open(device_, image_options(false), env_);
    if (!opened) return false;
    volume_ = std::move(*opened);
    add_key();
    look_around();
    return true;
  }
  void run(Bytes program) {
    for (std::size_t i = 0; volume_ && i < kCallsMax && program.size() >= kCallBytes; ++i) {
      call_ = load_disk<Call>(program);
      program = program.subspan(kCallBytes);
      call();
    }
  }
  void close() {
    if (volume_) (void)volume_->close();
    volume_.reset();
  }

 private:
  struct Call {
    u8 which, a, b, c;
    Le32 number;
  };
  static_assert(sizeof(Call) == kCallBytes);

  void add_key() {
    const auto id = volume_->add_key(kCaller, in_arena(raw_key(kImageKeySeed)));
    if (id) key_ = *id;
  }

  // Directories and names of the image are choices, and some names that are new.
  void look_around() {
    directories_ = {kRootInode};
    names_ = {"new", "newer", std::string(255, 'n')};
    handles_.clear();
    for (std::size_t i = 0; i < directories_.size() && i < kChoicesMax; ++i) {
      const auto entries = volume_->read_directory(directories_[i]);
      if (!entries) continue;
      for (const DirEntry& entry : *entries) {
        if (names_.size() < 2 * kChoicesMax) names_.push_back(entry.name);
        if ((entry.kind == FileKind::directory || entry.kind == FileKind::subvolume) &&
            directories_.size() < kChoicesMax)
          directories_.push_back(entry.inode);
      }
    }
  }

  InodeId directory(u8 choice) const { return directories_[choice % directories_.size()]; }
  const std::string& name(u8 choice) const { return names_[choice % names_.size()]; }
  HandleId handle() const {
    return handles_.empty() ? HandleId{} : handles_[call_.a % handles_.size()];
  }
  InodeId inode() const {
    return volume_->lookup(directory(call_.a), name(call_.b)).value_or(directory(call_.a));
  }
  Bytes data(std::size_t bytes_max) const { return Bytes(data_).first(call_.number % bytes_max); }
  void keep(const Result<HandleId>& opened) {
    if (!opened) return;
    if (handles_.size() == kHandlesMax) {
      (void)volume_->close_handle(handles_.front());
      handles_.erase(handles_.begin());
    }
    handles_.push_back(*opened);
  }
  void keep(const Result<InodeId>& made) {
    if (made && directories_.size() < kChoicesMax) directories_.push_back(*made);
  }

  void call() {
    using Part = void (Program::*)();
    static constexpr Part kParts[] = {&Program::data_call, &Program::name_call,
                                      &Program::attribute_call, &Program::volume_call};
    (this->*kParts[call_.which % 4])();
  }

  void data_call() {
    const u64 offset = call_.number % 300000;
    switch (call_.which / 4 % 9) {
      case 0:
        return keep(volume_->open_file(kCaller, directory(call_.a), name(call_.b),
                                       {.write = true, .create = true}, 0644, "path"));
      case 1:
        return (void)volume_->write(handle(), offset, data(kDataBytesMax));
      case 2:
        return (void)volume_->append(handle(), data(9000));
      case 3:
        return (void)volume_->truncate(handle(), call_.number % 400000);
      case 4:
        return (void)volume_->fsync(handle());
      case 5: {
        std::vector<std::byte> into(20000);
        return (void)volume_->read(handle(), offset, into);
      }
      case 6:
        if (handles_.empty()) return;
        (void)volume_->close_handle(handle());
        return (void)handles_.erase(handles_.begin() + call_.a % handles_.size());
      case 7:
        return keep(volume_->open_unnamed(kCaller, directory(call_.a), {.write = true}, 0600, "p"));
      default:
        return (void)volume_->map(handle());
    }
  }

  void name_call() {
    const InodeId above = directory(call_.a), other = directory(call_.c);
    const std::string &first = name(call_.b), &second = name(static_cast<u8>(call_.number));
    switch (call_.which / 4 % 10) {
      case 0:
        return keep(volume_->mkdir(kCaller, above, first, 0755));
      case 1:
        return (void)volume_->rmdir(above, first);
      case 2:
        return (void)volume_->unlink(above, first);
      case 3:
        return (void)volume_->rename(
            above, first, other, second,
            {.no_replace = call_.number % 4 == 1, .exchange = call_.number % 4 == 2});
      case 4:
        return (void)volume_->link(inode(), other, second);
      case 5:
        return (void)volume_->link(handle(), other, second);
      case 6:
        return (void)volume_->symlink(kCaller, above, first, std::string(call_.number % 4200, 't'));
      case 7: {
        const auto kind = static_cast<FileKind>(1 + call_.number % 7);
        return (void)volume_->make_node(kCaller, above, first, {.kind = kind, .mode = 0644});
      }
      case 8:
        return (void)volume_->read_directory(above);
      default:
        return (void)volume_->read_link(inode());
    }
  }

  void attribute_call() {
    static constexpr const char* kNames[] = {"user.a", "user.b", "trusted.a", "security.a"};
    const char* attribute = kNames[call_.c % 4];
    switch (call_.which / 4 % 6) {
      case 0:
        return (void)volume_->set_xattr(inode(), attribute, data(20000));
      case 1:
        return (void)volume_->get_xattr(inode(), attribute);
      case 2:
        return (void)volume_->remove_xattr(inode(), attribute);
      case 3:
        return (void)volume_->list_xattrs(inode());
      case 4:
        return (void)volume_->set_attributes(inode(), {.mode = call_.number % 010000, .uid = 1});
      default:
        return (void)volume_->stat(inode());
    }
  }

  void volume_call() {
    const InodeId above = directory(call_.a);
    switch (call_.which / 4 % 12) {
      case 0:
        return keep(volume_->create_subvolume(kCaller, above, name(call_.b), 0755));
      case 1:
        return keep(volume_->snapshot(kCaller, directory(call_.c), above, name(call_.b),
                                      call_.number % 2 == 0));
      case 2:
        return (void)volume_->remove_subvolume(above, name(call_.b));
      case 3:
        return (void)volume_->finish_removals();
      case 4:
        return (void)volume_->list_subvolumes();
      case 5:
        return (void)volume_->set_policy(kCaller, above, key_);
      case 6:
        return (void)volume_->remove_key(
            kCaller, key_,
            call_.number % 2 == 0 ? keymgr::RemovalMode::soft : keymgr::RemovalMode::hard);
      case 7:
        return add_key();
      case 8:
        return (void)volume_->sync();
      case 9:
        return (void)volume_->space();
      case 10:
        return (void)volume_->scrub({});
      default:
        volume_.reset();
        device_.crash(call_.number);
        return (void)open();
    }
  }

  SimDevice& device_;
  Env& env_;
  std::vector<std::byte> data_;
  std::unique_ptr<Volume> volume_;
  crypto::KeyId key_;
  std::vector<InodeId> directories_;
  std::vector<std::string> names_;
  std::vector<HandleId> handles_;
  Call call_{};
};

}  // namespace

void run_program(const StoreImage& image, Bytes program) {
  if (image.device_blocks == 0) return;
  RepeatingEnv env(2);  // other nonces than those that made the image
  SimDevice device({.size_bytes = image.device_blocks * engine::kBlockBytes, .shuffle = false});
  device.restore(image.to_sim());
  const auto before = check_volume(device, {.data = true, .progress = {}}, env);
  const bool sound = before && before->findings.empty();
  Program running(device, env);
  if (!running.open()) return;
  running.run(program);
  running.close();
  const auto after = check_volume(device, {.data = true, .progress = {}}, env);
  if (!sound) return;
  LK_CHECK(after.has_value());
  for (const engine::Finding& finding : after->findings)
    std::fprintf(stderr, "%s: %s\n", finding.where.c_str(), finding.what.c_str());
  LK_CHECK_MSG(after->findings.empty(), "calls broke an image that was sound");
}

}  // namespace latchkey::tests
