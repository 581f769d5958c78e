#pragma once
// A loop device, a disk or a plain file under io_uring.

#include <memory>
#include <string>

#include "base/result.h"
#include "engine/io.h"

namespace latchkey::engine {

struct OpenDeviceOptions {
  bool read_only = false;
  u64 create_size =
      0;  // not 0: make the file (sparse) if it does not exist, or grow it to this size
  bool force = false;     // take a block device although it is mounted; nobody else's lock
  bool buffered = false;  // do not try O_DIRECT (tests)
};

// Takes an exclusive lock for the life of the Device: flock on files, O_EXCL on block devices. A
// file that backs an attached loop device is busy, and a loop device also locks its backing file,
// so one store is not reached by two roads. Where O_DIRECT is refused (tmpfs before 6.6) the device
// is buffered; info().direct says so. Errors: busy (locked, mounted or in use), permission,
// not_found, read_only (writing is asked of a read-only device), wrong_device (neither file nor
// block device, or sectors above 4 KiB), invalid (create_size on a smaller block device or with
// read_only), no_space, io.
Result<std::unique_ptr<Device>> open_device(const std::string& path,
                                            const OpenDeviceOptions& options);

// What is recognised on the device by its signatures (file systems, partition tables, LUKS, ...):
// empty when nothing, else a phrase such as "ext4 file system". libblkid. A latchkey store is not
// recognised here; the superblock does that.
Result<std::string> foreign_signature(const std::string& path);

}  // namespace latchkey::engine
