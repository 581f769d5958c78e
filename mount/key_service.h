#pragma once
// What the control server can ask of a store: the verbs of a key's life, each for a caller. Every
// call is thread-safe; those that a removal or a device can hold up say so.

#include <memory>
#include <optional>
#include <vector>

#include "base/result.h"
#include "base/secret.h"
#include "mount/wire.h"
#include "volume/volume.h"

namespace latchkey::mount {

class KeyService {
 public:
  virtual ~KeyService() = default;
  virtual Result<crypto::KeyId> add(volume::Caller caller, SecretBytes&& secret) = 0;
  // Its holders have the process that has the file open now, as far as it can be found out.
  virtual volume::KeyReport status(volume::Caller caller, const crypto::KeyId& id) = 0;
  // The state alone, for who asks again and again.
  virtual keymgr::KeyState state(volume::Caller caller, const crypto::KeyId& id) = 0;
  virtual std::vector<volume::KeyReport> list(volume::Caller caller) = 0;
  // As Volume::remove_key(). Takes as long as the device takes.
  virtual Result<void> remove(volume::Caller caller, const crypto::KeyId& id,
                              const volume::RemovalRequest& request,
                              volume::RemovalReport& report) = 0;
  virtual Result<StoreReport> store() = 0;
  // By st_ino. no_attribute: it is not encrypted.
  virtual Result<PolicyReport> policy(u64 st_ino) = 0;
  virtual Result<void> set_policy(volume::Caller caller, u64 st_ino, const crypto::KeyId& id) = 0;
};

// st_ino of what is mounted, as an inode of the volume and back.
struct InodeNumbers {
  volume::InodeId (*inode_of)(u64 st_ino) = nullptr;
  u64 (*number_of)(volume::InodeId inode) = nullptr;
};

// Of a volume that is mounted as `device` (st_dev). The volume outlives the service.
std::unique_ptr<KeyService> volume_key_service(volume::Volume& volume, u64 device,
                                               const InodeNumbers& numbers, bool read_only);

}  // namespace latchkey::mount
