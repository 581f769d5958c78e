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
  using History = Place::File;
  struct OpenFile {
    Files::File file;
    History history;
    std::shared_ptr<Place> place;
    bool unnamed = false;  // never had a name
  };
  // A file of its own for one operation, open already or opened for it.
  struct Use {
    Files::File file;
    bool kept = false;
  };
  // A file by a name, or without one.
  struct Target {
    History history;
    std::string path;
  };

  void act(const SimOp& op);
  // caller_names.cpp
  void act_on_names(const SimOp& op);
  bool act_on_links(const SimOp& op, const std::string& name);
  void create(const SimOp& op, const std::string& name);
  void rename(const SimOp& op, const std::string& from);
  bool are_one_file(const std::string& a, const std::string& b) const;
  void exchange(const SimOp& op, const std::string& a);
  void read_link(const SimOp& op);
  void unnamed(const SimOp& op);
  void name_unnamed(const SimOp& op, const std::string& name);
  void list(const SimOp& op);
  void must_refuse_changes(const SimOp& op);
  // What a call on names has answered: true if it is to be told to the model.
  template <class T>
  bool told(const SimOp& op, const Result<T>& result);
  void note_nameless();  // after names have gone
  std::string some_name(const SimOp& op, u64 salt) const;
  std::string name_for(const SimOp& op) const;
  std::optional<std::string> some_of(const std::vector<std::string>& list, const SimOp& op,
                                     u64 salt) const;

  // caller_files.cpp
  void act_on_file(const SimOp& op);
  std::optional<Target> some_file(const SimOp& op, u64 salt) const;
  std::optional<Use> use(const SimOp& op, const Target& target);
  void end_use(const SimOp& op, const Use& use, const Target& target);
  void open(const SimOp& op, const Target& target);
  void close(const SimOp& op);
  void close(const SimOp& op, const OpenFile& open);
  void write(const SimOp& op, Files::File file, const Target& target);
  void truncate(const SimOp& op, Files::File file, const Target& target);
  void punch(const SimOp& op, Files::File file, const Target& target);
  void allocate(const SimOp& op, Files::File file, const Target& target);
  void clone(const SimOp& op, Files::File file, const Target& target);
  void read(const SimOp& op, Files::File file, const Target& target);
  void fsync(const SimOp& op, Files::File file, const Target& target);
  void sync(const SimOp& op);
  // Reads a file whose contents are unknown and lets the model go on from there.
  bool settle(const SimOp& op, Files::File file, const History& history);
  bool unsure(const History& history) const { return unsure(*place_, history); }
  bool unsure(const Place& place, const History& history) const;
  void doubt(const History& history) { place_->unsure.insert(history); }

  // caller_others.cpp
  void act_on_key(const SimOp& op);
  void act_on_blocks(const SimOp& op);
  void act_on_shared_names(const SimOp& op);
  void scrub(const SimOp& op);
  void make_place(const SimOp& op);
  void drop_place(const SimOp& op);

  std::string full(const std::string& path) const { return place_->root + "/" + path; }
  u64 draw(const SimOp& op, u64 salt, u64 bound) const;
  void fail(const SimOp& op, const std::string& what);

  SimMachine& machine_;
  OwnFiles& own_;
  const u32 number_;
  std::shared_ptr<Place> place_;  // of the operation that is under way
  std::vector<OpenFile> open_;
};

}  // namespace latchkey::tests
