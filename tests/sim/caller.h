#pragma once
// One caller of a simulated machine: does its operations, one after the other, and compares what it
// reads with what the world knows.

#include "tests/sim/world.h"

namespace latchkey::tests {

class Caller {
 public:
  Caller(SimMachine& machine, u32 number)
      : machine_(machine), own_(machine.world.own[number]), number_(number) {}

  // Until the machine is over; closes its files then.
  void run();
  // Nobody else runs: what is there is what the model says.
  void compare_at_rest();

 private:
  struct OpenFile {
    Files::File file;
    std::string path;  // in its own directory; empty once the name is gone
  };
  // A file of its own for one operation, open already or opened for it.
  struct Use {
    Files::File file;
    bool kept = false;
  };

  void act(const SimOp& op);
  void act_on_names(const SimOp& op);
  void act_on_file(const SimOp& op, const std::string& path);
  void act_on_key(const SimOp& op);
  void act_on_blocks(const SimOp& op);
  void act_on_shared_names(const SimOp& op);

  std::optional<Use> use(const SimOp& op, const std::string& path);
  void end_use(const SimOp& op, const Use& use, const std::string& path);
  void open(const SimOp& op, const std::string& path);
  void close(const SimOp& op);
  void write(const SimOp& op, Files::File file, const std::string& path);
  void truncate(const SimOp& op, Files::File file, const std::string& path);
  void read(const SimOp& op, Files::File file, const std::string& path);
  void fsync(const SimOp& op, Files::File file, const std::string& path);
  void sync(const SimOp& op);
  void create(const SimOp& op, const std::string& name);
  void rename(const SimOp& op, const std::string& from);
  void list(const SimOp& op);
  // Reads a file whose contents are unknown and lets the model go on from there.
  bool settle(const SimOp& op, Files::File file, const std::string& path);

  std::string some_name(const SimOp& op, u64 salt) const;
  std::string full(const std::string& path) const { return own_.root + "/" + path; }
  bool unsure(const std::string& path) const;
  void doubt(const std::string& path) { own_.unsure.insert(path); }
  void forget(const std::string& path);  // its name is gone
  u64 draw(const SimOp& op, u64 salt, u64 bound) const;
  void fail(const SimOp& op, const std::string& what);

  SimMachine& machine_;
  OwnFiles& own_;
  const u32 number_;
  std::vector<OpenFile> open_;
};

}  // namespace latchkey::tests
