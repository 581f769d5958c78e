#include "tests/sim/caller.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

namespace latchkey::tests {

namespace {

constexpr u64 kFileBytesMax = 60'000;
constexpr std::size_t kOpenMax = 3;

u64 mix(u64 value) {
  value = (value ^ value >> 30U) * 0xbf58476d1ce4e5b9U;
  value = (value ^ value >> 27U) * 0x94d049bb133111ebU;
  return value ^ value >> 31U;
}

std::vector<std::byte> random_bytes(u64 seed, u64 size) {
  std::vector<std::byte> bytes(size);
  for (u64 at = 0; at < size; at += sizeof(u64)) {
    const u64 word = mix(seed + at);
    std::memcpy(bytes.data() + at, &word, std::min(sizeof word, size - at));
  }
  return bytes;
}

std::string parent_of(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  return slash == std::string::npos ? "" : path.substr(0, slash);
}

bool is_on_blocks(SimOpKind kind) {
  return kind == SimOpKind::block_write || kind == SimOpKind::block_read ||
         kind == SimOpKind::block_fsync;
}

bool is_on_shared_names(SimOpKind kind) {
  return kind == SimOpKind::name_create || kind == SimOpKind::name_unlink ||
         kind == SimOpKind::name_rename;
}

bool is_on_key(SimOpKind kind) {
  return kind == SimOpKind::add_key || kind == SimOpKind::remove_soft ||
         kind == SimOpKind::remove_hard;
}

bool is_on_file(SimOpKind kind) {
  return kind == SimOpKind::write || kind == SimOpKind::append || kind == SimOpKind::read ||
         kind == SimOpKind::truncate || kind == SimOpKind::fsync || kind == SimOpKind::open;
}

}  // namespace

u64 Caller::draw(const SimOp& op, u64 salt, u64 bound) const {
  return mix(op.seed + salt * 0x9e3779b97f4a7c15U) % bound;
}

void Caller::fail(const SimOp& op, const std::string& what) {
  machine_.world.fail(
      fmt::format("op {} ({} of caller {}): {}", op.number, name_of(op.kind), op.caller, what));
}

// After a fault nothing is sure until it has been read.
bool Caller::unsure(const std::string& path) const {
  const bool may_go = own_.encrypted && machine_.world.removals_under_way != 0;
  return may_go || machine_.faulty() || own_.unsure.contains(path);
}

void Caller::run() {
  for (const SimOp& op : machine_.plan.ops) {
    if (op.life != machine_.life || op.caller != number_) continue;
    if (machine_.over()) break;
    ++machine_.world.calls;
    act(op);
  }
  for (const OpenFile& open : open_) (void)machine_.files.close_file(open.file);
}

void Caller::act(const SimOp& op) {
  if (is_on_key(op.kind)) return act_on_key(op);
  if (is_on_blocks(op.kind)) return act_on_blocks(op);
  if (is_on_shared_names(op.kind)) return act_on_shared_names(op);
  if (op.kind == SimOpKind::wait)
    return machine_.scheduler.sleep_until(machine_.scheduler.now_ns() + draw(op, 1, 4'000'000));
  if (own_.names_unsure) return;
  if (op.kind == SimOpKind::sync) return sync(op);
  if (op.kind == SimOpKind::close) return close(op);
  if (op.kind == SimOpKind::list) return list(op);
  if (!is_on_file(op.kind)) return act_on_names(op);
  const std::vector<std::string> files = own_.model.files();
  if (!files.empty()) act_on_file(op, files[draw(op, 1, files.size())]);
}

// ---- names of its own

std::string Caller::some_name(const SimOp& op, u64 salt) const {
  std::vector<std::string> directories = own_.model.directories();
  directories.emplace_back();
  const std::string& directory = directories[draw(op, salt, directories.size())];
  const std::string leaf(1, static_cast<char>('a' + draw(op, salt + 1, 5)));
  return directory.empty() ? leaf : directory + "/" + leaf;
}

void Caller::forget(const std::string& path) {
  own_.unsure.erase(path);
  for (OpenFile& open : open_)
    if (open.path == path) open.path.clear();
}

void Caller::act_on_names(const SimOp& op) {
  Model& model = own_.model;
  const std::string name = some_name(op, 1);
  const bool exists = model.exists(name);
  const bool directory = exists && model.is_directory(name);
  Verdict verdict = Verdict::refused;
  const auto told = [&](Verdict given) {
    verdict = given;
    if (verdict == Verdict::disturbed) own_.names_unsure = true;
    return verdict != Verdict::refused;
  };
  if (op.kind == SimOpKind::create && !exists) {
    create(op, name);
  } else if (op.kind == SimOpKind::mkdir && !exists && name.size() < 6) {
    if (told(judge(machine_, op, machine_.files.mkdir(full(name))))) model.mkdir(name);
  } else if (op.kind == SimOpKind::unlink && exists && !directory) {
    if (!told(judge(machine_, op, machine_.files.unlink(full(name))))) return;
    model.unlink(name);
    forget(name);
  } else if (op.kind == SimOpKind::rmdir && directory && model.is_empty(name)) {
    if (told(judge(machine_, op, machine_.files.rmdir(full(name))))) model.rmdir(name);
  } else if (op.kind == SimOpKind::rename && exists) {
    rename(op, name);
  }
}

// The name may have been made before the key went, which its count in the directory shows.
void Caller::create(const SimOp& op, const std::string& name) {
  Model& model = own_.model;
  const auto file =
      machine_.files.open_file(full(name), {.write = true, .create = true, .exclusive = true});
  const Verdict verdict = judge(machine_, op, file);
  if (verdict != Verdict::refused) {
    own_.names_unsure = verdict == Verdict::disturbed;
    model.create(name);
    if (file && judge(machine_, op, machine_.files.close_file(*file)) != Verdict::done) doubt(name);
    return;
  }
  const std::string parent = parent_of(name);
  const auto entries = machine_.files.list(full(parent));
  std::size_t expected = 0;
  for (const auto& paths : {model.files(), model.directories()})
    for (const std::string& path : paths) expected += parent_of(path) == parent ? 1 : 0;
  const bool told = judge(machine_, op, entries) == Verdict::done;
  if (told && entries->size() == expected) return;
  if (told && entries->size() != expected + 1) fail(op, "a refused create changes other names");
  own_.names_unsure = !told;
  model.create(name);
}

void Caller::rename(const SimOp& op, const std::string& from) {
  Model& model = own_.model;
  const std::string to = some_name(op, 11);
  const bool below = to == from || to.starts_with(from + "/") || from.starts_with(to + "/");
  if (below || to.size() > 8) return;
  if (model.exists(to)) {
    if (model.is_directory(to) != model.is_directory(from)) return;
    if (model.is_directory(to) && !model.is_empty(to)) return;
  }
  const Verdict verdict =
      judge(machine_, op, machine_.files.rename(full(from), full(to), !model.exists(to)));
  if (verdict == Verdict::refused) return;
  if (verdict == Verdict::disturbed) own_.names_unsure = true;
  forget(to);
  model.rename(from, to);
  const auto moved = [&](const std::string& path) {
    const bool inside = path == from || path.starts_with(from + "/");
    return inside ? to + path.substr(from.size()) : path;
  };
  for (OpenFile& open : open_) open.path = moved(open.path);
  std::set<std::string> unsure;
  for (const std::string& path : own_.unsure) unsure.insert(moved(path));
  own_.unsure = std::move(unsure);
}

void Caller::list(const SimOp& op) {
  const auto entries = machine_.files.list(own_.root);
  if (judge(machine_, op, entries) != Verdict::done || own_.names_unsure) return;
  std::set<std::string> listed, expected;
  for (const auto& entry : *entries) listed.insert(entry.name);
  for (const auto& paths : {own_.model.files(), own_.model.directories()})
    for (const std::string& path : paths)
      if (path.find('/') == std::string::npos) expected.insert(path);
  // A locked directory lists other names: as many.
  if (listed.size() != entries->size() || listed.size() != expected.size())
    return fail(op, fmt::format("{} names instead of {}", entries->size(), expected.size()));
  const bool locked = own_.encrypted && !listed.empty() && listed.begin()->size() > 8;
  if (!locked && listed != expected) fail(op, "other names than it should have");
}

// ---- files of its own

std::optional<Caller::Use> Caller::use(const SimOp& op, const std::string& path) {
  for (const OpenFile& open : open_)
    if (open.path == path && draw(op, 21, 4) != 0) return Use{open.file, true};
  const auto file = machine_.files.open_file(full(path), {.write = true});
  if (judge(machine_, op, file) != Verdict::done) return std::nullopt;
  return Use{*file, false};
}

// A last close flushes when the key is leaving: that may fail as any flush.
void Caller::end_use(const SimOp& op, const Use& use, const std::string& path) {
  if (use.kept) return;
  if (judge(machine_, op, machine_.files.close_file(use.file)) != Verdict::done) doubt(path);
}

void Caller::act_on_file(const SimOp& op, const std::string& path) {
  if (op.kind == SimOpKind::open) return open(op, path);
  const auto used = use(op, path);
  if (!used) return;
  // What a change is made to must be known, so that it is known what it makes.
  const bool changes =
      op.kind == SimOpKind::write || op.kind == SimOpKind::append || op.kind == SimOpKind::truncate;
  if (changes && unsure(path) && !settle(op, used->file, path)) return end_use(op, *used, path);
  if (op.kind == SimOpKind::write || op.kind == SimOpKind::append) write(op, used->file, path);
  if (op.kind == SimOpKind::truncate) truncate(op, used->file, path);
  if (op.kind == SimOpKind::read) read(op, used->file, path);
  if (op.kind == SimOpKind::fsync) fsync(op, used->file, path);
  end_use(op, *used, path);
}

void Caller::open(const SimOp& op, const std::string& path) {
  if (open_.size() >= kOpenMax) return;
  const auto file = machine_.files.open_file(full(path), {.write = true});
  if (judge(machine_, op, file) == Verdict::done) open_.push_back({*file, path});
}

void Caller::close(const SimOp& op) {
  if (open_.empty()) return;
  const auto at = open_.begin() + static_cast<std::ptrdiff_t>(draw(op, 1, open_.size()));
  const OpenFile open = *at;
  open_.erase(at);
  const auto closed = machine_.files.close_file(open.file);
  if (judge(machine_, op, closed) != Verdict::done && !open.path.empty()) doubt(open.path);
}

void Caller::write(const SimOp& op, Files::File file, const std::string& path) {
  Model& model = own_.model;
  const bool append = op.kind == SimOpKind::append;
  const u64 size = draw(op, 31, 3) == 0 ? 1 + draw(op, 32, 300) : 1 + draw(op, 33, 5 * 4096);
  const std::vector<std::byte> bytes = random_bytes(op.seed, size);
  u64 offset = append ? model.size(path) : draw(op, 34, kFileBytesMax - size);
  if (!append && draw(op, 35, 2) == 0) offset = offset / 4096 * 4096;
  Verdict verdict = Verdict::done;
  if (append) {
    const auto at = machine_.files.append(file, bytes);
    verdict = judge(machine_, op, at);
    if (at && *at != offset && !unsure(path))
      return fail(op, fmt::format("appends at {} instead of {}", *at, offset));
    if (at) offset = *at;
  } else {
    verdict = judge(machine_, op, machine_.files.write(file, offset, bytes));
  }
  model.write(path, offset, bytes);
  if (verdict != Verdict::done) doubt(path);
}

void Caller::truncate(const SimOp& op, Files::File file, const std::string& path) {
  const u64 bound = draw(op, 41, 2) == 0 ? own_.model.size(path) + 1 : kFileBytesMax;
  const u64 size = draw(op, 42, bound);
  const Verdict verdict = judge(machine_, op, machine_.files.truncate(file, size));
  own_.model.truncate(path, size);
  if (verdict != Verdict::done) doubt(path);
}

bool Caller::settle(const SimOp& op, Files::File file, const std::string& path) {
  const auto bytes = machine_.files.read_all(file);
  if (judge(machine_, op, bytes) != Verdict::done) return false;
  if (auto wrong = own_.model.explain(path, *bytes)) {
    // In memory a stopped volume may hold half of a call that it refused; it never gets further.
    const bool half = machine_.faulty() && machine_.files.stopped();
    own_.names_unsure = own_.names_unsure || half;
    if (!half) fail(op, path + ": " + *wrong);
    return false;
  }
  own_.model.settle(path, *bytes);
  own_.unsure.erase(path);
  return true;
}

void Caller::read(const SimOp& op, Files::File file, const std::string& path) {
  if (unsure(path)) {
    settle(op, file, path);
    return;
  }
  const std::vector<std::byte> expected = own_.model.latest(path);
  const u64 offset = draw(op, 51, expected.size() + 1);
  std::vector<std::byte> bytes(1 + draw(op, 52, 20'000));
  const auto count = machine_.files.read(file, offset, bytes);
  if (judge(machine_, op, count) != Verdict::done || unsure(path)) return;
  const Bytes wanted = Bytes(expected).subspan(offset);
  if (*count > wanted.size() || (*count == 0 && !wanted.empty()))
    return fail(
        op, fmt::format("{} gives {} bytes at {} of {}", path, *count, offset, expected.size()));
  if (!std::equal(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(*count),
                  wanted.begin()))
    fail(op, fmt::format("{} gives wrong bytes in the {} at {}", path, *count, offset));
}

void Caller::fsync(const SimOp& op, Files::File file, const std::string& path) {
  const Verdict verdict = judge(machine_, op, machine_.files.fsync(file));
  if (verdict != Verdict::done) return doubt(path);
  if (unsure(path) && !settle(op, file, path)) return;
  own_.model.fsync(path);
}

void Caller::sync(const SimOp& op) {
  if (judge(machine_, op, machine_.files.sync()) != Verdict::done) return;
  std::set<std::string> except;
  for (const std::string& path : own_.model.files())
    if (unsure(path)) except.insert(path);
  own_.model.sync(except);
}

// ---- the key

void Caller::act_on_key(const SimOp& op) {
  const u32 uid = Files::kUser + (draw(op, 61, 4) == 0 ? 1 : 0);
  SimWorld& world = machine_.world;
  if (op.kind == SimOpKind::add_key) {
    (void)judge(machine_, op, machine_.files.add_key(uid));
    return;
  }
  const bool hard = op.kind == SimOpKind::remove_hard;
  world.key_was_removed = true;
  const bool drops =
      hard || machine_.plan.promise() != SimPromise::survived || machine_.plan.nearly_full;
  if (drops) {
    ++world.removals_under_way;
    world.dirty_may_be_lost();
  }
  const auto removed = machine_.files.remove_key(uid, hard);
  if (drops) {
    world.dirty_may_be_lost();
    --world.removals_under_way;
  }
  if (!removed) return;  // somebody else was first, or holds the claim
  machine_.scheduler.note(removed->bytes_lost);
  if (removed->bytes_lost != 0 && !drops && !machine_.device.power_off())
    fail(op, "a soft removal loses data");
  if (draw(op, 62, 4) != 0) (void)judge(machine_, op, machine_.files.add_key(uid));
}

// ---- what is shared

void Caller::act_on_blocks(const SimOp& op) {
  SharedBlocks& blocks = machine_.world.blocks;
  const auto which = static_cast<u32>(draw(op, 71, SharedBlocks::kFiles));
  const auto block = static_cast<u32>(draw(op, 72, SharedBlocks::kBlocks));
  const auto file = machine_.files.open_file(SharedBlocks::path(which), {.write = true});
  if (judge(machine_, op, file) != Verdict::done) return;
  if (op.kind == SimOpKind::block_write) {
    const u64 stamp = blocks.begin_write(which, block);
    const auto wrote = machine_.files.write(*file, block * SharedBlocks::kBlockBytes,
                                            SharedBlocks::bytes_of(stamp));
    (void)judge(machine_, op, wrote);
    blocks.end_write(which, block, stamp, wrote.has_value());
    if (machine_.world.removals_under_way != 0 || machine_.faulty()) blocks.may_be_lost();
  } else if (op.kind == SimOpKind::block_read) {
    std::vector<std::byte> bytes(SharedBlocks::kBlockBytes);
    const u64 begun = blocks.next_event();
    const auto count = machine_.files.read(*file, block * SharedBlocks::kBlockBytes, bytes);
    const bool read = judge(machine_, op, count) == Verdict::done;
    if (read && *count != bytes.size()) fail(op, "a shared block is cut short");
    if (const auto wrong = blocks.explain_read(which, block, begun, bytes);
        read && wrong && machine_.world.removals_under_way == 0)
      fail(op, fmt::format("block {} of shared file {} {}", block, which, *wrong));
  } else {
    const u64 begun = blocks.next_event();
    const auto flushed = machine_.files.fsync(*file);
    if (judge(machine_, op, flushed) == Verdict::done) blocks.acknowledge(which, begun);
  }
  (void)judge(machine_, op, machine_.files.close_file(*file));
}

void Caller::act_on_shared_names(const SimOp& op) {
  SharedNames& names = machine_.world.names;
  const auto path = [&](u64 salt) {
    return fmt::format("{}/n{}", SharedNames::kPath, draw(op, salt, 4));
  };
  const auto expected_of_races = [](const Error& error) {
    return error.code == Errc::exists || error.code == Errc::not_found;
  };
  const auto count = [&](const auto& result, i64 by) {
    if (!result && expected_of_races(result.error())) return;
    const Verdict verdict = judge(machine_, op, result);
    if (verdict == Verdict::done) names.expected += by;
    if (verdict == Verdict::disturbed) names.unsure = true;
  };
  if (op.kind == SimOpKind::name_create) {
    count(machine_.files.mkdir(path(81)), +1);
  } else if (op.kind == SimOpKind::name_unlink) {
    count(machine_.files.rmdir(path(81)), -1);
  } else if (path(81) != path(82)) {
    count(machine_.files.rename(path(81), path(82), true), 0);
  }
}

void Caller::compare_at_rest() {
  if (own_.names_unsure || machine_.over()) return;
  const SimOp at_end{.number = ~u32{0}, .life = machine_.life, .caller = number_};
  for (const std::string& path : own_.model.files()) {
    if (machine_.over()) return;
    const auto file = machine_.files.open_file(full(path), {});
    if (judge(machine_, at_end, file) != Verdict::done) continue;
    if (unsure(path)) {
      settle(at_end, *file, path);
    } else {
      const auto bytes = machine_.files.read_all(*file);
      if (judge(machine_, at_end, bytes) == Verdict::done && *bytes != own_.model.latest(path))
        fail(at_end, path + " is not what was written");
    }
    (void)judge(machine_, at_end, machine_.files.close_file(*file));
  }
}

}  // namespace latchkey::tests
