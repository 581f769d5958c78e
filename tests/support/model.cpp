#include "tests/support/model.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/check.h"

namespace latchkey::tests {

namespace {

std::string parent_of(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  return slash == std::string::npos ? "" : path.substr(0, slash);
}

Result<void> read_below(const ModelReader& reader, const std::string& path,
                        ModelContents& contents) {
  LK_TRY(const auto entries, reader.list(path));
  for (const ModelReader::Entry& entry : entries) {
    const std::string below = path.empty() ? entry.name : path + "/" + entry.name;
    if (contents.contains(below)) return fail(Errc::exists, "a directory lists a name twice");
    ModelFound found;
    found.inode = entry.inode;
    if (entry.directory) {
      contents[below] = found;
      LK_TRYV(read_below(reader, below, contents));
      continue;
    }
    found.kind = entry.symlink ? ModelFound::Kind::symlink : ModelFound::Kind::file;
    LK_TRY(found.bytes, entry.symlink ? reader.read_link(below) : reader.read(below));
    contents[below] = std::move(found);
  }
  return {};
}

}  // namespace

Result<ModelContents> read_tree(const ModelReader& reader) {
  ModelContents contents;
  LK_TRYV(read_below(reader, "", contents));
  return contents;
}

Model::Tree& Model::next_tree() { return trees_.emplace_back(Tree(trees_.back())); }

void Model::add(const std::string& path, Node node) {
  const std::string parent = parent_of(path);
  LK_CHECK(!exists(path) && (parent.empty() || is_directory(parent)));
  Tree& tree = next_tree();
  node.named_at = first_call_ + trees_.size() - 1;
  tree.emplace(path, std::move(node));
}

void Model::create(const std::string& path) {
  add(path, {.file = std::make_shared<FileHistory>()});
}

void Model::mkdir(const std::string& path) { add(path, {}); }

void Model::link(const std::string& from, const std::string& to) { name(to, history(from)); }

void Model::symlink(const std::string& path, Bytes target) {
  add(path, {.file = std::make_shared<FileHistory>(target), .symlink = true});
}

void Model::name(const std::string& path, std::shared_ptr<FileHistory> file) {
  add(path, {.file = std::move(file)});
}

void Model::unlink(const std::string& path) {
  LK_CHECK(exists(path) && !is_directory(path));
  next_tree().erase(path);
}

void Model::rmdir(const std::string& path) {
  LK_CHECK(is_empty(path));
  next_tree().erase(path);
}

FileHistory& Model::file(const std::string& path) {
  LK_CHECK(exists(path) && !is_directory(path));
  return *trees_.back().at(path).file;
}

void Model::write(const std::string& path, u64 offset, Bytes bytes) {
  file(path).write(offset, bytes);
}

void Model::append(const std::string& path, Bytes bytes) {
  file(path).write(file(path).size(), bytes);
}

void Model::truncate(const std::string& path, u64 size) { file(path).truncate(size); }

void Model::fsync(const std::string& path) {
  file(path).acknowledge();
  durable_through(trees_.back().at(path).named_at);
}

void Model::sync(const std::function<bool(const std::shared_ptr<FileHistory>&)>& unsure) {
  durable_through(first_call_ + trees_.size() - 1);
  for (auto& [path, node] : trees_.back())
    if (node.file && !(unsure && unsure(node.file))) node.file->acknowledge();
}

// Takes `from` and what is below it out of the tree; by its new names. Whatever moves is named by
// that call.
Model::Tree Model::moved(Tree& tree, const std::string& from, const std::string& to, u64 call) {
  Tree moved;
  for (auto it = tree.begin(); it != tree.end();) {
    if (it->first != from && !it->first.starts_with(from + "/")) {
      ++it;
      continue;
    }
    Node node = std::move(it->second);
    if (it->first == from) node.named_at = call;
    moved.emplace(to + it->first.substr(from.size()), std::move(node));
    it = tree.erase(it);
  }
  return moved;
}

void Model::rename(const std::string& from, const std::string& to) {
  LK_CHECK(exists(from) && from != to && !to.starts_with(from + "/"));
  Tree& tree = next_tree();
  tree.erase(to);
  Tree there = moved(tree, from, to, first_call_ + trees_.size() - 1);
  tree.merge(there);
}

void Model::exchange(const std::string& a, const std::string& b) {
  LK_CHECK(exists(a) && exists(b) && a != b && !b.starts_with(a + "/") && !a.starts_with(b + "/"));
  Tree& tree = next_tree();
  const u64 call = first_call_ + trees_.size() - 1;
  Tree at_b = moved(tree, a, b, call);
  Tree at_a = moved(tree, b, a, call);
  tree.merge(at_a);
  tree.merge(at_b);
}

std::vector<std::byte> Model::latest(const std::string& path) const {
  return trees_.back().at(path).file->latest();
}

std::optional<std::string> Model::explain(const std::string& path, Bytes contents) const {
  return trees_.back().at(path).file->explain(contents);
}

void Model::settle(const std::string& path, Bytes contents) { file(path).settle(contents); }

void Model::durable_through(u64 call) {
  if (call <= first_call_) return;
  trees_.erase(trees_.begin(), trees_.begin() + static_cast<std::ptrdiff_t>(call - first_call_));
  first_call_ = call;
}

bool Model::is_directory(const std::string& path) const {
  const auto it = trees_.back().find(path);
  return it != trees_.back().end() && !it->second.file;
}

bool Model::is_symlink(const std::string& path) const {
  const auto it = trees_.back().find(path);
  return it != trees_.back().end() && it->second.symlink;
}

std::shared_ptr<FileHistory> Model::history(const std::string& path) const {
  LK_CHECK(exists(path) && !is_directory(path) && !is_symlink(path));
  return trees_.back().at(path).file;
}

bool Model::is_empty(const std::string& path) const {
  LK_CHECK(is_directory(path));
  return std::ranges::none_of(
      trees_.back(), [&](const auto& entry) { return entry.first.starts_with(path + "/"); });
}

u64 Model::size(const std::string& path) const { return trees_.back().at(path).file->size(); }

std::vector<std::string> Model::files() const {
  std::vector<std::string> paths;
  for (const auto& [path, node] : trees_.back())
    if (node.file && !node.symlink) paths.push_back(path);
  return paths;
}

std::vector<std::string> Model::directories() const {
  std::vector<std::string> paths;
  for (const auto& [path, node] : trees_.back())
    if (!node.file) paths.push_back(path);
  return paths;
}

std::vector<std::string> Model::names() const {
  std::vector<std::string> paths;
  for (const auto& [path, node] : trees_.back()) paths.push_back(path);
  return paths;
}

Model Model::copy(const std::function<bool(const std::shared_ptr<FileHistory>&)>& unsure) const {
  std::map<const FileHistory*, std::shared_ptr<FileHistory>> copies;
  Model model;
  model.trees_ = {trees_.back()};
  for (auto& [path, node] : model.trees_.back()) {
    node.named_at = 0;
    if (!node.file) continue;
    std::shared_ptr<FileHistory>& copied = copies[node.file.get()];
    if (!copied) copied = std::make_shared<FileHistory>(*node.file);
    if (!unsure(node.file)) copied->acknowledge();
    node.file = copied;
  }
  return model;
}

ModelFound::Kind Model::Node::kind() const {
  if (!file) return ModelFound::Kind::directory;
  return symlink ? ModelFound::Kind::symlink : ModelFound::Kind::file;
}

std::optional<std::string> Model::names_differ(const Tree& tree, const ModelContents& contents) {
  std::map<const FileHistory*, std::string> first_name;
  std::map<u64, const FileHistory*> file_of;
  for (const auto& [path, node] : tree) {
    const auto it = contents.find(path);
    if (it == contents.end()) return fmt::format("{} is missing", path);
    const ModelFound& found = it->second;
    if (found.kind != node.kind()) return fmt::format("{} is of another kind", path);
    if (!node.file || found.inode == 0) continue;
    const auto& [name, fresh] = first_name.emplace(node.file.get(), path);
    if (!fresh && contents.at(name->second).inode != found.inode)
      return fmt::format("{} is not the file that {} is", path, name->second);
    if (file_of.emplace(found.inode, node.file.get()).first->second != node.file.get())
      return fmt::format("{} is a file that has other names", path);
  }
  for (const auto& [path, found] : contents)
    if (!tree.contains(path)) return fmt::format("{} is there and should not", path);
  return std::nullopt;
}

std::optional<std::string> Model::compare_live(const ModelContents& contents) const {
  if (auto wrong = names_differ(trees_.back(), contents)) return wrong;
  for (const auto& [path, node] : trees_.back()) {
    if (!node.file) continue;
    const std::vector<std::byte> expected = node.file->latest();
    const std::vector<std::byte>& bytes = contents.at(path).bytes;
    if (bytes.size() != expected.size())
      return fmt::format("{} has {} bytes instead of {}", path, bytes.size(), expected.size());
    const auto differ = std::ranges::mismatch(bytes, expected);
    if (differ.in1 != bytes.end())
      return fmt::format("{} is wrong from byte {} on", path, differ.in1 - bytes.begin());
  }
  return std::nullopt;
}

std::optional<std::string> Model::compare_recovered(const ModelContents& contents) const {
  std::optional<std::string> names, inside;
  for (const Tree& tree : trees_) {
    names = names_differ(tree, contents);
    if (names) continue;
    inside.reset();
    for (const auto& [path, node] : tree) {
      if (!node.file) continue;
      const auto wrong = node.file->explain(contents.at(path).bytes);
      if (!wrong) continue;
      inside = fmt::format("{}: {}", path, *wrong);
      break;
    }
    if (!inside) return std::nullopt;
  }
  if (inside) return inside;  // the names of some tree agree
  return fmt::format("the names are of none of {} trees; of the last, {}", trees_.size(), *names);
}

void Model::adopt(const ModelContents& contents) {
  Tree tree;
  std::map<u64, std::shared_ptr<FileHistory>> files;
  for (const auto& [path, found] : contents) {
    Node& node = tree[path];
    if (found.kind == ModelFound::Kind::directory) continue;
    node.symlink = found.kind == ModelFound::Kind::symlink;
    if (found.inode != 0) node.file = files[found.inode];
    if (!node.file) node.file = std::make_shared<FileHistory>(found.bytes);
    if (found.inode != 0) files[found.inode] = node.file;
  }
  trees_ = {std::move(tree)};
  first_call_ = 0;
}

}  // namespace latchkey::tests
