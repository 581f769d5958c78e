#pragma once
// A key service without a volume, which answers at once, for tests of who asks it.

#include "mount/key_service.h"

namespace latchkey::tests {

// Keys by their first byte; what is asked decides what is answered.
class InventedKeys final : public mount::KeyService {
 public:
  Result<crypto::KeyId> add(volume::Caller, SecretBytes&& secret) override {
    SecretBytes ours = std::move(secret);
    crypto::KeyId id;
    id.bytes[0] = ours.bytes()[0];
    return id;
  }
  volume::KeyReport status(volume::Caller, const crypto::KeyId& id) override {
    volume::KeyReport report;
    report.key_id = id;
    report.state = keymgr::KeyState::present;
    report.holders.resize(std::to_integer<u8>(id.bytes[1]));
    for (volume::Holder& holder : report.holders)
      holder.path.assign(std::to_integer<u8>(id.bytes[2]) * 40, 'x');
    return report;
  }
  keymgr::KeyState state(volume::Caller, const crypto::KeyId&) override {
    return keymgr::KeyState::absent;
  }
  std::vector<volume::KeyReport> list(volume::Caller) override {
    return std::vector<volume::KeyReport>(3);
  }
  Result<void> remove(volume::Caller, const crypto::KeyId& id,
                      const volume::RemovalRequest& request,
                      volume::RemovalReport& report) override {
    report.key_id = id;
    report.mode = request.mode;
    report.phases.push_back({"door", 1});
    const u8 kind = std::to_integer<u8>(id.bytes[3]);
    if (kind == 1) return fail(Errc::busy, "somebody is inside");
    if (kind == 2) report.state = keymgr::KeyState::incompletely_removed;
    return {};
  }
  Result<mount::StoreReport> store() override { return mount::StoreReport{}; }
  Result<mount::PolicyReport> policy(u64) override { return mount::PolicyReport{}; }
  Result<void> set_policy(volume::Caller, u64, const crypto::KeyId&) override { return {}; }
};

}  // namespace latchkey::tests
