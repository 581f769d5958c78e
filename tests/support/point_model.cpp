#include "tests/support/point_model.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/check.h"

namespace latchkey::tests {

using volume::FileKind;

namespace {

constexpr std::string_view kVault = "/vault";

std::string parent_of(const std::string& path) { return path.substr(0, path.rfind('/')); }

bool is_below(const std::string& path, const std::string& directory) {
  return path.size() > directory.size() && path.starts_with(directory) &&
         path[directory.size()] == '/';
}

}  // namespace

PointModel::PointModel() : shapes_(1) {}

PointModel::Shape& PointModel::next() {
  Shape copy = last();
  shapes_.push_back(std::move(copy));
  return shapes_.back();
}

std::optional<u64> PointModel::inode(const std::string& path) const {
  const auto it = last().names.find(path);
  return it == last().names.end() ? std::nullopt : std::optional(it->second);
}

bool PointModel::is(const std::string& path, FileKind kind) const {
  const auto number = inode(path);
  return number && last().items.at(*number).kind == kind;
}

bool PointModel::is_directory(const std::string& path) const {
  return path.empty() || is(path, FileKind::directory) || is(path, FileKind::subvolume);
}

bool PointModel::reachable(const std::string& path) const {
  return !locked_ || !is_below(path, std::string(kVault));
}

bool PointModel::may_have(const std::string& path) const {
  return reachable(path) && !inode(path) && is_directory(parent_of(path));
}

bool PointModel::has_below(const std::string& path) const {
  const auto it = last().names.upper_bound(path + "/");
  return it != last().names.end() && is_below(it->first, path);
}

bool PointModel::has_contents(const std::string& path) const {
  return reachable(path) && is(path, FileKind::regular);
}

u64 PointModel::size(const std::string& path) const { return contents_.at(*inode(path)).size(); }

bool PointModel::make(const std::string& path, FileKind kind, const std::string& says) {
  if (!may_have(path)) return false;
  const u64 number = next_inode_++;
  Shape& shape = next();
  shape.names[path] = number;
  shape.items[number].kind = kind;
  if (!says.empty()) shape.items[number].says["target"] = says;
  const auto above = shape.names.find(parent_of(path));
  if (above != shape.names.end() && kind != FileKind::subvolume) {
    const auto& of_parent = shape.items[above->second].says;
    if (const auto policy = of_parent.find("policy"); policy != of_parent.end())
      shape.items[number].says.insert(*policy);
  }
  if (kind == FileKind::regular) contents_[number];
  return true;
}

bool PointModel::link(const std::string& from, const std::string& to) {
  if (!reachable(from) || !inode(from) || is_directory(from) || !may_have(to)) return false;
  next().names[to] = *inode(from);
  return true;
}

bool PointModel::remove(const std::string& path, bool directory) {
  if (!reachable(path) || !inode(path) || is_directory(path) != directory) return false;
  if (directory && has_below(path) && !is(path, FileKind::subvolume)) return false;
  Shape& shape = next();
  std::erase_if(shape.names,
                [&](const auto& name) { return name.first == path || is_below(name.first, path); });
  return true;
}

// What is below goes along.
void PointModel::move(Shape& shape, const std::string& from, const std::string& to) {
  std::map<std::string, u64> moved;
  for (const auto& [path, number] : shape.names) {
    const bool inside = path == from || is_below(path, from);
    moved[inside ? to + path.substr(from.size()) : path] = number;
  }
  shape.names = std::move(moved);
}

bool PointModel::rename(const std::string& from, const std::string& to) {
  if (!reachable(from) || !reachable(to) || !inode(from)) return false;
  if (is_below(to, from) || !is_directory(parent_of(to))) return false;
  if (inode(to) == inode(from)) return true;  // two names of one inode: nothing happens
  if (inode(to)) {
    if (is_directory(from) != is_directory(to) || has_below(to)) return false;
  }
  Shape& shape = next();
  shape.names.erase(to);
  move(shape, from, to);
  return true;
}

bool PointModel::exchange(const std::string& a, const std::string& b) {
  if (!reachable(a) || !reachable(b) || !inode(a) || !inode(b)) return false;
  if (is_below(a, b) || is_below(b, a)) return false;
  Shape& shape = next();
  const std::string aside = "/\x01";
  move(shape, a, aside);
  move(shape, b, a);
  move(shape, aside, b);
  return true;
}

bool PointModel::say(const std::string& path, const std::string& what, const std::string& value) {
  if (!reachable(path) || !inode(path)) return false;
  next().items[*inode(path)].says[what] = value;
  return true;
}

bool PointModel::unsay(const std::string& path, const std::string& what) {
  if (!reachable(path) || !inode(path)) return false;
  if (!last().items.at(*inode(path)).says.contains(what)) return false;
  next().items[*inode(path)].says.erase(what);
  return true;
}

void PointModel::take_names_of(const PointModel& before) {
  shapes_ = before.shapes_;
  locked_ = before.locked_;
  lose_dirty();
}

bool PointModel::write(const std::string& path, u64 offset, Bytes bytes) {
  if (!has_contents(path)) return false;
  contents_[*inode(path)].write(offset, bytes);
  dirty_[*inode(path)] = true;
  return true;
}

bool PointModel::append(const std::string& path, Bytes bytes) {
  return has_contents(path) && write(path, size(path), bytes);
}

bool PointModel::truncate(const std::string& path, u64 size) {
  if (!has_contents(path)) return false;
  contents_[*inode(path)].truncate(size);
  return true;
}

bool PointModel::grow(const std::string& path, u64 size) {
  return this->size(path) >= size || truncate(path, size);
}

bool PointModel::punch(const std::string& path, u64 offset, u64 length) {
  if (!has_contents(path)) return false;
  const u64 end = std::min(offset + length, size(path));
  if (end <= offset) return true;
  return write(path, offset, std::vector<std::byte>(end - offset));
}

bool PointModel::copy_contents(const std::string& from, const std::string& to) {
  if (!has_contents(from) || !has_contents(to) || inode(from) == inode(to)) return false;
  // A part of a block can only be the end of both.
  if (size(from) % FileHistory::kBlock != 0 && size(to) > size(from)) return false;
  const auto bytes = contents_[*inode(from)].latest();
  return write(to, 0, bytes);
}

// Its inodes are other ones, with the contents of now.
bool PointModel::snapshot(const std::string& to) {
  if (!may_have(to)) return false;
  const Shape before = last();
  Shape& shape = next();
  const u64 root = next_inode_++;
  shape.names[to] = root;
  shape.items[root].kind = FileKind::subvolume;
  std::map<u64, u64> copies;
  for (const auto& [path, number] : before.names) {
    const std::string above = parent_of(path);
    bool inside = false;  // of another subvolume
    for (const auto& [other, inode] : before.names)
      inside |= before.items.at(inode).kind == FileKind::subvolume && is_below(path, other);
    if (inside) continue;
    if (!copies.contains(number)) {
      const u64 copy = copies[number] = next_inode_++;
      shape.items[copy] = before.items.at(number);
      if (shape.items[copy].kind == FileKind::subvolume)
        shape.items[copy] = {FileKind::directory, {{"mode", "555"}}};
      if (before.items.at(number).kind == FileKind::regular)
        contents_[copy] = FileHistory(contents_[number].latest());
      if (lost_[number]) lost_[copy] = true;
    }
    shape.names[to + path] = copies[number];
  }
  return true;
}

bool PointModel::fsync(const std::string& path) {
  if (!has_contents(path)) return false;
  if (!lost_[*inode(path)]) contents_[*inode(path)].acknowledge();
  dirty_.erase(*inode(path));
  auto first = shapes_.end() - 1;
  while (first != shapes_.begin() &&
         about(*(first - 1), *inode(path)) == about(last(), *inode(path)))
    --first;
  shapes_.erase(shapes_.begin(), first);
  return true;
}

std::string PointModel::about(const Shape& shape, u64 number) {
  const auto item = shape.items.find(number);
  if (item == shape.items.end()) return "nothing";
  std::string about = text(item->second);
  for (const auto& [path, named] : shape.names) {
    if (named != number) continue;
    const auto parent = shape.names.find(parent_of(path));
    about += fmt::format(" {} in {}", path.substr(path.rfind('/')),
                         parent == shape.names.end() ? 0 : parent->second);
  }
  return about;
}

void PointModel::sync() {
  for (auto& [number, history] : contents_)
    if (!lost_[number]) history.acknowledge();
  dirty_.clear();
  shapes_.erase(shapes_.begin(), shapes_.end() - 1);
}

void PointModel::lose_dirty() {
  for (const auto& [number, dirty] : dirty_)
    if (dirty) lost_[number] = true;
}

std::string PointModel::text(const Item& item) {
  std::string text;
  for (const auto& [what, value] : item.says) text += what + "=" + value + ";";
  return text;
}

std::optional<std::string> PointModel::differs(const Shape& shape, const FoundTree& found) {
  std::map<u64, u32> links;
  for (const auto& [path, number] : shape.names) ++links[number];
  std::map<u64, volume::InodeId> numbers;
  for (const auto& [path, number] : shape.names) {
    const auto it = found.find(path);
    if (it == found.end()) return path + " is not there";
    const FoundEntry& entry = it->second;
    const Item& item = shape.items.at(number);
    if (entry.kind != item.kind) return path + " is of another kind";
    if (entry.says != text(item))
      return fmt::format("{} says '{}' and not '{}'", path, entry.says, text(item));
    const bool directory = item.kind == FileKind::directory || item.kind == FileKind::subvolume;
    if (!directory && entry.links != links[number])
      return fmt::format("{} has {} links and not {}", path, entry.links, links[number]);
    if (numbers.emplace(number, entry.inode).first->second != entry.inode)
      return path + " is another inode than its other name";
  }
  for (const auto& [path, entry] : found)
    if (!shape.names.contains(path)) return path + " is there";
  return std::nullopt;
}

std::optional<std::string> PointModel::contents_differ(const Shape& shape, const FoundTree& found,
                                                       bool live) const {
  for (const auto& [path, number] : shape.names) {
    if (shape.items.at(number).kind != FileKind::regular) continue;
    const std::vector<std::byte>& contents = found.at(path).contents;
    const FileHistory& history = contents_.at(number);
    const auto lost = lost_.find(number);
    if (live && (lost == lost_.end() || !lost->second)) {
      if (contents != history.latest()) return path + " does not hold what was written";
    } else if (const auto wrong = history.explain(contents)) {
      return path + ": " + *wrong;
    }
  }
  return std::nullopt;
}

std::optional<std::string> PointModel::compare_live(const FoundTree& found) const {
  if (auto wrong = differs(last(), found)) return wrong;
  return contents_differ(last(), found, true);
}

// The newest shape that has these names explains best what is wrong.
std::optional<std::string> PointModel::compare_recovered(const FoundTree& found) const {
  std::optional<std::string> wrong;
  for (const Shape& shape : shapes_) {
    auto names = differs(shape, found);
    auto contents = names ? std::nullopt : contents_differ(shape, found, false);
    if (!names && !contents) return std::nullopt;
    if (!wrong || !names) wrong = names ? names : contents;
  }
  return wrong;
}

}  // namespace latchkey::tests
