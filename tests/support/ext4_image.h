#pragma once
// An ext4 in an image file, mounted where only this process sees it: what the real kernel makes of
// its encryption, and the bytes that then lie on the device. Needs root, loop devices, mkfs.ext4.
//
// Nothing of it outlives the process, however that ends: the mount is in a namespace of the test's
// own, and the loop device detaches itself with the last mount.

#include <string>
#include <vector>

#include "base/types.h"
#include "engine/fd.h"
#include "tests/support/temp_file.h"

namespace latchkey::tests {

class Ext4Image {
 public:
  // The image is a file below `parent`.
  explicit Ext4Image(const std::string& parent = TempFolder::disk_folder()) : folder_(parent) {}
  ~Ext4Image();

  // Makes the file system, with encryption and without a journal, and mounts it. Empty, or what
  // this machine lacks. Once.
  std::string make(u64 size, u32 block_bytes);
  // Both can be repeated; 0 or an errno.
  int mount();
  int unmount();
  bool mounted() const { return mounted_; }

  std::string path(const std::string& name) const { return point_ + "/" + name; }
  // An ioctl's handle of the file system, or of something in it; closed before unmount().
  engine::Fd open(const std::string& name = ".") const;
  // Everything written is in the image, also what belongs to directories.
  void sync() const;

  std::vector<std::byte> read(u64 offset, std::size_t size) const;
  // While it is not mounted.
  void write(u64 offset, Bytes data) const;

  // Whether the loop device still has our image.
  bool attached() const;

 private:
  TempFolder folder_;
  std::string image_ = folder_.file("image");
  std::string point_ = folder_.file("mnt");
  std::string device_;
  bool mounted_ = false;
};

}  // namespace latchkey::tests
