#pragma once
// A volume that every program on the machine can use, at a directory of theirs. One process for
// each mounted store.

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/types.h"
#include "mount/control_server.h"
#include "mount/file_system.h"
#include "mount/session.h"
#include "volume/volume.h"

namespace latchkey::mount {

struct MountOptions {
  SessionOptions session;
  FileSystemOptions file_system;
  Parked::Limits parked;  // `count` below FileSystemOptions::background_max
  ControlOptions control;
};

// One thread starts it, waits and destroys it; the accessors are for any.
class Mount {
 public:
  explicit Mount(MountOptions options);
  ~Mount();  // stop()
  Mount(const Mount&) = delete;
  Mount& operator=(const Mount&) = delete;

  // For VolumeOptions: so the volume is opened after this is made, and goes before.
  volume::Front* front() { return &pages_; }
  // Mounts the volume, and returns when the mount has answered its
  // first request.
  Result<void> start(volume::Volume& volume);
  // Until it is unmounted, or `stop_fd` becomes readable: then it unmounts itself.
  Result<void> wait(int stop_fd);
  // Not mounted any more, and the volume is left alone: it may be closed then.
  void stop();

  volume::Volume& volume() { return *volume_; }
  u64 device_number() const { return device_number_; }  // st_dev of all that is in it
  const std::string& directory() const { return options_.session.directory; }
  // Why there is no control socket: the mount goes on without.
  const std::optional<Error>& control_error() const { return control_error_; }

 private:
  Result<void> start_control();

  const MountOptions options_;
  KernelPages pages_;
  volume::Volume* volume_ = nullptr;
  u64 device_number_ = 0;
  std::unique_ptr<FileSystem> file_system_;
  std::unique_ptr<Session> session_;
  std::unique_ptr<KeyService> keys_;
  std::unique_ptr<ControlServer> control_;
  std::optional<Error> control_error_;
};

}  // namespace latchkey::mount
