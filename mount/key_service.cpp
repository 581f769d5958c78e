#include "mount/key_service.h"

#include "mount/holders.h"

namespace latchkey::mount {

namespace {

class VolumeKeyService final : public KeyService {
 public:
  VolumeKeyService(volume::Volume& volume, u64 device, const InodeNumbers& numbers, bool read_only)
      : volume_(volume), device_(device), numbers_(numbers), read_only_(read_only) {}

  Result<crypto::KeyId> add(volume::Caller caller, SecretBytes&& secret) override {
    return volume_.add_key(caller, std::move(secret));
  }

  volume::KeyReport status(volume::Caller caller, const crypto::KeyId& id) override {
    volume::KeyReport report = volume_.key_status(caller, id);
    name_holders(report.holders);
    return report;
  }

  keymgr::KeyState state(volume::Caller caller, const crypto::KeyId& id) override {
    return volume_.key_state(caller, id);
  }

  std::vector<volume::KeyReport> list(volume::Caller caller) override {
    return volume_.key_list(caller);
  }

  Result<void> remove(volume::Caller caller, const crypto::KeyId& id,
                      const volume::RemovalRequest& request,
                      volume::RemovalReport& report) override {
    auto removed = volume_.remove_key(caller, id, request, report);
    name_holders(report.holders);
    return removed;
  }

  Result<StoreReport> store() override {
    LK_TRY(const volume::VolumeSpace space, volume_.space());
    const volume::VolumeFacts facts = volume_.facts();
    StoreReport report;
    report.volume_id = facts.store.volume_id;
    report.label = facts.store.label;
    report.generation = facts.store.generation;
    report.size_bytes = facts.store.size_bytes;
    report.blocks_total = space.blocks_total;
    report.blocks_available = space.blocks_available;
    report.dirty_bytes = facts.dirty_bytes;
    report.read_only = read_only_;
    report.secret_memory = arena_status().kind == ArenaKind::memfd_secret;
    return report;
  }

  Result<PolicyReport> policy(u64 st_ino) override {
    LK_TRY(const volume::Stat facts, volume_.stat(numbers_.inode_of(st_ino)));
    if (!facts.key_id) return fail(Errc::no_attribute, "it is not encrypted");
    return PolicyReport{*facts.key_id, facts.locked, facts.kind == volume::FileKind::directory};
  }

  Result<void> set_policy(volume::Caller caller, u64 st_ino, const crypto::KeyId& id) override {
    return volume_.set_policy(caller, numbers_.inode_of(st_ino), id);
  }

 private:
  // A handle that was closed meanwhile has no inode any more, and is nobody's.
  void name_holders(std::vector<volume::Holder>& holders) {
    if (holders.empty()) return;
    std::vector<u64> inodes;
    std::erase_if(holders, [&](const volume::Holder& holder) {
      const auto facts = volume_.stat(holder.handle);
      if (facts) inodes.push_back(numbers_.number_of(facts->inode));
      return !facts;
    });
    name_processes(device_, inodes, holders);
  }

  volume::Volume& volume_;
  const u64 device_;
  const InodeNumbers numbers_;
  const bool read_only_;
};

}  // namespace

std::unique_ptr<KeyService> volume_key_service(volume::Volume& volume, u64 device,
                                               const InodeNumbers& numbers, bool read_only) {
  return std::make_unique<VolumeKeyService>(volume, device, numbers, read_only);
}

}  // namespace latchkey::mount
