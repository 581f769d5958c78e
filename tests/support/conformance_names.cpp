// Operations on names and attributes.

#include <algorithm>

#include "tests/support/conformance_world.h"
#include "volume/paths.h"

namespace latchkey::tests {

using namespace volume;  // NOLINT: the whole file is about it

namespace {

std::string flag(std::string_view name, bool set) {
  return std::string(name) + (set ? "=1" : "=0");
}

}  // namespace

Outcome ConformanceWorld::stat(const Words& words) {
  static constexpr std::string_view kPlainLength = "plain_length=";
  const auto found = inode(words.at(1));
  if (!found) return outcome_of(found);
  const auto stat = volume_->stat(*found);
  Outcome outcome = outcome_of(stat);
  if (!stat || words.size() == 2) return outcome;
  const std::string& what = words[2];
  if (what == "size") outcome.detail = "size=" + std::to_string(stat->size);
  if (what.starts_with(kPlainLength))
    outcome.detail =
        flag("plain_length", stat->size == std::stoull(what.substr(kPlainLength.size())));
  return outcome;
}

Outcome ConformanceWorld::list(const Words& words) {
  const auto directory = inode(words.at(1));
  if (!directory) return outcome_of(directory);
  const auto entries = volume_->read_directory(*directory);
  Outcome outcome = outcome_of(entries);
  if (!entries) return outcome;
  for (std::size_t i = 2; i < words.size(); ++i) {
    if (i > 2) outcome.detail += ' ';
    const bool there = std::ranges::find(*entries, words[i], &DirEntry::name) != entries->end();
    outcome.detail +=
        words[i] == "count" ? "entries=" + std::to_string(entries->size()) : flag(words[i], there);
  }
  return outcome;
}

Outcome ConformanceWorld::readlink(const Words& words) {
  const auto found = inode(words.at(1));
  if (!found) return outcome_of(found);
  const auto target = volume_->read_link(*found);
  if (!target) return outcome_of(target);
  return {"0", flag("plain", *target == words.at(2))};
}

Outcome ConformanceWorld::mkdir(const Words& words) {
  return outcome_of(make_directory(words.at(1)));
}

Outcome ConformanceWorld::rmdir(const Words& words) {
  const auto found = place(words.at(1));
  if (!found) return outcome_of(found);
  return outcome_of(volume_->rmdir(found->directory, found->name));
}

Outcome ConformanceWorld::unlink(const Words& words) {
  const auto found = place(words.at(1));
  if (!found) return outcome_of(found);
  return outcome_of(volume_->unlink(found->directory, found->name));
}

Outcome ConformanceWorld::unlink_in(const Words& words) {
  const auto directory = volume_->stat(handles_.at(words.at(1)));
  if (!directory) return outcome_of(directory);
  return outcome_of(volume_->unlink(directory->inode, words.at(2)));
}

Outcome ConformanceWorld::unlink_either(const Words& words) {
  const Outcome first = unlink({words.at(0), words.at(1)});
  return first.result == "0" ? first : unlink({words.at(0), words.at(2)});
}

Outcome ConformanceWorld::remove_tree(const Words& words) {
  return outcome_of(volume::remove_tree(*volume_, words.at(1)));
}

Outcome ConformanceWorld::mkfifo(const Words& words) {
  const auto found = place(words.at(1));
  if (!found) return outcome_of(found);
  return outcome_of(volume_->make_node(caller_, found->directory, found->name,
                                       {.kind = FileKind::fifo, .mode = 0666}));
}

Outcome ConformanceWorld::symlink(const Words& words) {
  const auto found = place(words.at(2));
  if (!found) return outcome_of(found);
  return outcome_of(volume_->symlink(caller_, found->directory, found->name, words.at(1)));
}

Outcome ConformanceWorld::chmod(const Words& words) {
  const auto found = inode(words.at(1));
  if (!found) return outcome_of(found);
  return outcome_of(
      volume_->set_mode(*found, static_cast<u32>(std::stoul(words.at(2), nullptr, 8))));
}

Outcome ConformanceWorld::utimes(const Words& words) {
  const auto found = inode(words.at(1));
  if (!found) return outcome_of(found);
  return outcome_of(volume_->set_times(*found, 1));
}

Outcome ConformanceWorld::setxattr(const Words& words) {
  const auto found = inode(words.at(1));
  if (!found) return outcome_of(found);
  return outcome_of(volume_->set_xattr(*found, words.at(2), std::as_bytes(std::span(words.at(3)))));
}

Outcome ConformanceWorld::rename(const Words& words) {
  const auto from = place(words.at(1));
  if (!from) return outcome_of(from);
  const auto to = place(words.at(2));
  if (!to) return outcome_of(to);
  return outcome_of(volume_->rename(from->directory, from->name, to->directory, to->name,
                                    {.exchange = words.at(0) == "exchange"}));
}

Outcome ConformanceWorld::exchange(const Words& words) { return rename(words); }

Outcome ConformanceWorld::link(const Words& words) {
  const auto found = inode(words.at(1));
  if (!found) return outcome_of(found);
  const auto to = place(words.at(2));
  if (!to) return outcome_of(to);
  return outcome_of(volume_->link(*found, to->directory, to->name));
}

Outcome ConformanceWorld::link_handle(const Words& words) {
  const auto to = place(words.at(2));
  if (!to) return outcome_of(to);
  return outcome_of(volume_->link(handles_.at(words.at(1)), to->directory, to->name));
}

Outcome ConformanceWorld::keep_name(const Words& words) {
  const std::string called = words.at(1).substr(words.at(1).rfind('/') + 1);
  const auto found = place(words.at(1));
  if (found) kept_names_[called] = found->name;
  return outcome_of(found);
}

}  // namespace latchkey::tests
