// Names of a caller's own.

#include <fmt/format.h>

#include <algorithm>

#include "tests/sim/caller.h"

namespace latchkey::tests {

namespace {

constexpr std::size_t kOpenMax = 3;

std::string parent_of(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  return slash == std::string::npos ? "" : path.substr(0, slash);
}

bool apart(const std::string& a, const std::string& b) {
  return a != b && !a.starts_with(b + "/") && !b.starts_with(a + "/");
}

// Short ones and some of several pieces.
std::string target_of(u64 seed) {
  const u64 size = seed % 5 == 0 ? 1 + seed / 5 % 4000 : 1 + seed / 5 % 60;
  std::string target(size, 'a');
  for (u64 i = 0; i < size; ++i) target[i] = static_cast<char>('a' + (seed >> i % 8U) % 26);
  return target;
}

}  // namespace

std::string Caller::some_name(const SimOp& op, u64 salt) const {
  std::vector<std::string> directories = place_->model.directories();
  directories.emplace_back();
  const std::string& directory = directories[draw(op, salt, directories.size())];
  const std::string leaf(1, static_cast<char>('a' + draw(op, salt + 1, 5)));
  return directory.empty() ? leaf : directory + "/" + leaf;
}

// One that the call can be made with, if there is any.
std::string Caller::name_for(const SimOp& op) const {
  const Model& model = place_->model;
  std::vector<std::string> names;
  if (op.kind == SimOpKind::rmdir) {
    for (const std::string& path : model.directories())
      if (model.is_empty(path)) names.push_back(path);
  } else if (op.kind == SimOpKind::unlink) {
    for (const std::string& path : model.names())
      if (!model.is_directory(path)) names.push_back(path);
  } else if (op.kind == SimOpKind::rename || op.kind == SimOpKind::exchange) {
    names = model.names();
  }
  return some_of(names, op, 2).value_or(some_name(op, 1));
}

template <class T>
bool Caller::told(const SimOp& op, const Result<T>& result) {
  const Verdict verdict = judge(machine_, op, result);
  if (verdict == Verdict::disturbed) place_->names_unsure = true;
  return verdict != Verdict::refused;
}

void Caller::note_nameless() {
  std::set<History> named;
  for (const std::string& path : place_->model.files()) named.insert(place_->model.history(path));
  for (const OpenFile& open : open_)
    if (open.place == place_ && !named.contains(open.history))
      place_->nameless.insert(open.history);
  std::erase_if(place_->unsure, [&](const History& history) {
    return !named.contains(history) && !place_->nameless.contains(history);
  });
}

void Caller::act_on_names(const SimOp& op) {
  if (place_->read_only) return must_refuse_changes(op);
  Model& model = place_->model;
  const std::string name = name_for(op);
  if (act_on_links(op, name)) return;
  const bool exists = model.exists(name);
  const bool directory = exists && model.is_directory(name);
  if (op.kind == SimOpKind::create && !exists) {
    create(op, name);
  } else if (op.kind == SimOpKind::mkdir && !exists && name.size() < 6) {
    if (told(op, machine_.files.mkdir(full(name)))) model.mkdir(name);
  } else if (op.kind == SimOpKind::unlink && exists && !directory) {
    if (told(op, machine_.files.unlink(full(name)))) model.unlink(name);
  } else if (op.kind == SimOpKind::rmdir && directory && model.is_empty(name)) {
    if (told(op, machine_.files.rmdir(full(name)))) model.rmdir(name);
  } else if (op.kind == SimOpKind::rename && exists) {
    rename(op, name);
  } else if (op.kind == SimOpKind::exchange && exists) {
    exchange(op, name);
  }
  note_nameless();
}

bool Caller::act_on_links(const SimOp& op, const std::string& name) {
  Model& model = place_->model;
  const bool exists = model.exists(name);
  if (op.kind == SimOpKind::link) {
    const auto file = some_of(model.files(), op, 3);
    if (file && !exists && told(op, machine_.files.link(full(*file), full(name))))
      model.link(*file, name);
  } else if (op.kind == SimOpKind::symlink) {
    const std::string target = target_of(op.seed);
    if (!exists && told(op, machine_.files.symlink(full(name), target)))
      model.symlink(name, std::as_bytes(std::span(target)));
  } else if (op.kind == SimOpKind::unnamed) {
    unnamed(op);
  } else if (op.kind == SimOpKind::name_unnamed) {
    if (!exists) name_unnamed(op, name);
  } else {
    return false;
  }
  return true;
}

// The name may have been made before the key went, which its count in the directory shows.
void Caller::create(const SimOp& op, const std::string& name) {
  Model& model = place_->model;
  const auto file =
      machine_.files.open_file(full(name), {.write = true, .create = true, .exclusive = true});
  const Verdict verdict = judge(machine_, op, file);
  if (verdict != Verdict::refused) {
    place_->names_unsure = verdict == Verdict::disturbed;
    model.create(name);
    if (file && judge(machine_, op, machine_.files.close_file(*file)) != Verdict::done)
      doubt(model.history(name));
    return;
  }
  const std::string parent = parent_of(name);
  const auto entries = machine_.files.list(full(parent));
  const auto names = model.names();
  const auto expected = static_cast<std::size_t>(std::ranges::count_if(
      names, [&](const std::string& path) { return parent_of(path) == parent; }));
  const bool known = judge(machine_, op, entries) == Verdict::done;
  if (known && entries->size() == expected) return;
  if (known && entries->size() != expected + 1) fail(op, "a refused create changes other names");
  place_->names_unsure = !known;
  model.create(name);
}

// Of two names of one file POSIX says that nothing happens, and so does exchange: no name is made.
bool Caller::are_one_file(const std::string& a, const std::string& b) const {
  const Model& model = place_->model;
  const auto file_of = [&](const std::string& path) {
    const bool file = model.exists(path) && !model.is_directory(path) && !model.is_symlink(path);
    return file ? model.history(path) : nullptr;
  };
  return file_of(a) != nullptr && file_of(a) == file_of(b);
}

void Caller::rename(const SimOp& op, const std::string& from) {
  Model& model = place_->model;
  const std::string to = some_name(op, 11);
  if (!apart(from, to) || to.size() > 8) return;
  const bool replaces = model.exists(to);
  if (replaces) {
    if (model.is_directory(to) != model.is_directory(from)) return;
    if (model.is_directory(to) && !model.is_empty(to)) return;
  }
  const bool no_replace = !replaces || draw(op, 13, 4) == 0;
  const auto renamed = machine_.files.rename(full(from), full(to), {.no_replace = no_replace});
  if (replaces && no_replace) {
    if (renamed) return fail(op, "a rename that must not replace has replaced " + to);
    if (renamed.error().code == Errc::exists) return;
  }
  if (told(op, renamed) && !are_one_file(from, to)) model.rename(from, to);
}

void Caller::exchange(const SimOp& op, const std::string& a) {
  Model& model = place_->model;
  const auto b = some_of(model.names(), op, 12);
  if (!b || !apart(a, *b)) return;
  const auto exchanged = machine_.files.rename(full(a), full(*b), {.exchange = true});
  if (told(op, exchanged) && !are_one_file(a, *b)) model.exchange(a, *b);
}

void Caller::read_link(const SimOp& op) {
  std::vector<std::string> links;
  for (const std::string& path : place_->model.names())
    if (place_->model.is_symlink(path)) links.push_back(path);
  const auto path = some_of(links, op, 1);
  if (!path) return;
  const auto target = machine_.files.read_link(full(*path));
  if (judge(machine_, op, target) != Verdict::done) return;
  // While the key is not present it reads otherwise.
  if (place_->encrypted && machine_.world.key_was_removed) return;
  if (*target != place_->model.latest(*path)) fail(op, full(*path) + " leads elsewhere");
}

void Caller::unnamed(const SimOp& op) {
  if (open_.size() >= kOpenMax) return;
  std::vector<std::string> directories = place_->model.directories();
  directories.emplace_back();
  const auto file = machine_.files.open_unnamed(full(*some_of(directories, op, 4)));
  if (judge(machine_, op, file) != Verdict::done) return;
  open_.push_back({*file, std::make_shared<FileHistory>(), place_, true});
  place_->nameless.insert(open_.back().history);
}

// A file that had a name once gets none again.
void Caller::name_unnamed(const SimOp& op, const std::string& name) {
  std::vector<OpenFile*> files;
  for (OpenFile& open : open_)
    if (open.place == place_ && place_->nameless.contains(open.history)) files.push_back(&open);
  if (files.empty()) return;
  OpenFile& open = *files[draw(op, 5, files.size())];
  const auto linked = machine_.files.link(open.file, full(name));
  if (!open.unnamed && !linked && linked.error().code == Errc::not_found) return;
  if (!told(op, linked)) return;
  if (!open.unnamed && linked) return fail(op, "a file whose last name is gone has one again");
  if (!open.unnamed) return;
  open.unnamed = false;
  place_->nameless.erase(open.history);
  place_->model.name(name, open.history);
}

void Caller::list(const SimOp& op) {
  const auto entries = machine_.files.list(place_->root);
  if (judge(machine_, op, entries) != Verdict::done || place_->names_unsure) return;
  std::set<std::string> listed, expected;
  for (const auto& entry : *entries) listed.insert(entry.name);
  for (const std::string& path : place_->model.names())
    if (path.find('/') == std::string::npos) expected.insert(path);
  // A locked directory lists other names: as many.
  if (listed.size() != entries->size() || listed.size() != expected.size())
    return fail(op, fmt::format("{} names instead of {}", entries->size(), expected.size()));
  const bool locked = place_->encrypted && !listed.empty() && listed.begin()->size() > 8;
  if (!locked && listed != expected) fail(op, "other names than it should have");
}

// Every change of a read-only snapshot.
void Caller::must_refuse_changes(const SimOp& op) {
  const std::string name = some_name(op, 1);
  Result<void> changed;
  if (!place_->model.exists(name)) {
    changed = draw(op, 2, 2) == 0 ? machine_.files.mkdir(full(name))
                                  : machine_.files.symlink(full(name), "x");
  } else if (place_->model.is_directory(name)) {
    changed = machine_.files.rename(full(name), full("z"), {});
  } else {
    changed = machine_.files.unlink(full(name));
  }
  if (changed) return fail(op, "a read-only snapshot takes a change of " + name);
  if (changed.error().code != Errc::read_only) (void)judge(machine_, op, changed);
}

}  // namespace latchkey::tests
