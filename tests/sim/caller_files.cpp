// Contents of a caller's own files.

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "tests/sim/caller.h"
#include "tests/support/random.h"

namespace latchkey::tests {

namespace {

constexpr u64 kFileBytesMax = 60'000;
constexpr std::size_t kOpenMax = 3;

std::vector<std::byte> random_bytes(u64 seed, u64 size) {
  SplitMix64 random(seed);
  std::vector<std::byte> bytes(size);
  for (u64 at = 0; at < size; at += sizeof(u64)) {
    const u64 word = random();
    std::memcpy(bytes.data() + at, &word, std::min(sizeof word, size - at));
  }
  return bytes;
}

}  // namespace

// After a fault nothing is sure until it has been read.
bool Caller::unsure(const Place& place, const History& history) const {
  const bool may_go = place.encrypted && machine_.world.removals_under_way != 0;
  return may_go || machine_.faulty() || place.unsure.contains(history);
}

std::optional<Caller::Target> Caller::some_file(const SimOp& op, u64 salt) const {
  std::vector<Target> targets;
  for (const std::string& path : place_->model.files())
    targets.push_back({place_->model.history(path), path});
  for (const OpenFile& open : open_)
    if (open.place == place_ && place_->nameless.contains(open.history))
      targets.push_back({open.history, ""});
  if (targets.empty()) return std::nullopt;
  return targets[draw(op, salt, targets.size())];
}

std::optional<Caller::Use> Caller::use(const SimOp& op, const Target& target) {
  for (const OpenFile& open : open_)
    if (open.history == target.history && (target.path.empty() || draw(op, 21, 4) != 0))
      return Use{open.file, true};
  const auto file = machine_.files.open_file(full(target.path), {.write = !place_->read_only});
  if (judge(machine_, op, file) != Verdict::done) return std::nullopt;
  return Use{*file, false};
}

// A last close flushes when the key is leaving: that may fail as any flush.
void Caller::end_use(const SimOp& op, const Use& use, const Target& target) {
  if (use.kept) return;
  if (judge(machine_, op, machine_.files.close_file(use.file)) != Verdict::done)
    doubt(target.history);
}

void Caller::act_on_file(const SimOp& op) {
  const auto target = some_file(op, 1);
  if (!target) return;
  if (op.kind == SimOpKind::open) return open(op, *target);
  const bool changes = op.kind != SimOpKind::read && op.kind != SimOpKind::fsync;
  if (changes && place_->read_only) {
    const auto file = machine_.files.open_file(full(target->path), {.write = true});
    if (file) return fail(op, "a file of a read-only snapshot opens for writing");
    if (file.error().code != Errc::read_only) (void)judge(machine_, op, file);
    return;
  }
  const auto used = use(op, *target);
  if (!used) return;
  // What a change is made to must be known, so that it is known what it makes.
  if (changes && unsure(target->history) && !settle(op, used->file, target->history))
    return end_use(op, *used, *target);
  if (op.kind == SimOpKind::write || op.kind == SimOpKind::append) write(op, used->file, *target);
  if (op.kind == SimOpKind::truncate) truncate(op, used->file, *target);
  if (op.kind == SimOpKind::punch) punch(op, used->file, *target);
  if (op.kind == SimOpKind::allocate) allocate(op, used->file, *target);
  if (op.kind == SimOpKind::clone) clone(op, used->file, *target);
  if (op.kind == SimOpKind::read) read(op, used->file, *target);
  if (op.kind == SimOpKind::fsync) fsync(op, used->file, *target);
  end_use(op, *used, *target);
}

void Caller::open(const SimOp& op, const Target& target) {
  if (open_.size() >= kOpenMax || target.path.empty()) return;
  const auto file = machine_.files.open_file(full(target.path), {.write = !place_->read_only});
  if (judge(machine_, op, file) == Verdict::done)
    open_.push_back({*file, target.history, place_, false});
}

void Caller::close(const SimOp& op) {
  if (open_.empty()) return;
  const auto at = open_.begin() + static_cast<std::ptrdiff_t>(draw(op, 1, open_.size()));
  const OpenFile open = *at;
  open_.erase(at);
  close(op, open);
}

// It has been taken out of open_.
void Caller::close(const SimOp& op, const OpenFile& open) {
  const auto closed = machine_.files.close_file(open.file);
  if (judge(machine_, op, closed) != Verdict::done) open.place->unsure.insert(open.history);
  if (std::ranges::none_of(open_, [&](const OpenFile& o) { return o.history == open.history; }))
    open.place->nameless.erase(open.history);
}

void Caller::write(const SimOp& op, Files::File file, const Target& target) {
  FileHistory& history = *target.history;
  const bool append = op.kind == SimOpKind::append;
  const u64 size = draw(op, 31, 3) == 0 ? 1 + draw(op, 32, 300) : 1 + draw(op, 33, 5 * 4096);
  const std::vector<std::byte> bytes = random_bytes(op.seed, size);
  u64 offset = append ? history.size() : draw(op, 34, kFileBytesMax - size);
  if (!append && draw(op, 35, 2) == 0) offset = offset / 4096 * 4096;
  Verdict verdict = Verdict::done;
  machine_.tell(op, fmt::format("{} bytes at {} of {}", size, offset, full(target.path)));
  if (append) {
    const auto at = machine_.files.append(file, bytes);
    verdict = judge(machine_, op, at);
    if (at && *at != offset && !unsure(target.history))
      return fail(op, fmt::format("appends at {} instead of {}", *at, offset));
    if (at) offset = *at;
  } else {
    verdict = judge(machine_, op, machine_.files.write(file, offset, bytes));
  }
  history.write(offset, bytes);
  if (verdict != Verdict::done) doubt(target.history);
}

// One that fails while there is power has changed nothing (V4).
void Caller::truncate(const SimOp& op, Files::File file, const Target& target) {
  const u64 bound = draw(op, 41, 2) == 0 ? target.history->size() + 1 : kFileBytesMax;
  const u64 size = draw(op, 42, bound);
  machine_.tell(op, fmt::format("{} to {}", full(target.path), size));
  const Verdict verdict = judge(machine_, op, machine_.files.truncate(file, size));
  if (verdict == Verdict::done || machine_.device.power_off()) target.history->truncate(size);
  if (verdict == Verdict::disturbed) doubt(target.history);
}

// Each block of the range is old or zeros.
void Caller::punch(const SimOp& op, Files::File file, const Target& target) {
  const u64 size = target.history->size();
  const u64 offset = draw(op, 43, size + 4096);
  const u64 length = 1 + draw(op, 44, 3 * 4096);
  const Verdict verdict = judge(machine_, op, machine_.files.punch(file, offset, length));
  const std::vector<std::byte> zeros(offset < size ? std::min(length, size - offset) : 0);
  target.history->write(offset, zeros);
  if (verdict != Verdict::done) doubt(target.history);
}

void Caller::allocate(const SimOp& op, Files::File file, const Target& target) {
  const u64 offset = draw(op, 45, kFileBytesMax / 2);
  const u64 length = 1 + draw(op, 46, kFileBytesMax / 2);
  const bool keep_size = draw(op, 47, 2) == 0;
  const Verdict verdict =
      judge(machine_, op, machine_.files.allocate(file, offset, length, keep_size));
  const bool grows = !keep_size && offset + length > target.history->size();
  if (verdict != Verdict::refused && grows) target.history->truncate(offset + length);
  if (verdict == Verdict::disturbed) doubt(target.history);
}

// From another file of the place: whole blocks, or up to the source's end where that ends both.
void Caller::clone(const SimOp& op, Files::File file, const Target& target) {
  const auto source = some_file(op, 2);
  if (!source || source->history == target.history) return;
  const u64 size = source->history->size();
  if (size == 0) return;
  const auto used = use(op, *source);
  if (!used) return;
  const bool known = !unsure(source->history) || settle(op, used->file, source->history);
  Files::Range range;
  range.from = draw(op, 48, (size + 4095) / 4096) * 4096;
  range.to = draw(op, 49, 8) * 4096;
  const u64 blocks = (size - range.from) / 4096;
  const u64 to_end = range.to + size - range.from;
  const bool all = blocks == 0 || draw(op, 50, 3) == 0;
  range.length = all ? 0 : 4096 * (1 + draw(op, 51, blocks));
  const bool allowed = !all || size % 4096 == 0 || to_end >= target.history->size();
  if (known && allowed && size == source->history->size()) {
    const Verdict verdict = judge(machine_, op, machine_.files.clone(used->file, file, range));
    const std::vector<std::byte> bytes = source->history->latest();
    target.history->write(range.to,
                          Bytes(bytes).subspan(range.from, all ? size - range.from : range.length));
    if (verdict != Verdict::done || unsure(source->history)) doubt(target.history);
  }
  end_use(op, *used, *source);
}

bool Caller::settle(const SimOp& op, Files::File file, const History& history) {
  const auto bytes = machine_.files.read_all(file);
  machine_.tell(op, fmt::format("reads {} bytes", bytes ? bytes->size() : 0));
  if (judge(machine_, op, bytes) != Verdict::done) return false;
  if (auto wrong = history->explain(*bytes)) {
    fail(op, place_->root + ": a file that a call failed on: " + *wrong);
    return false;
  }
  history->settle(*bytes);
  place_->unsure.erase(history);
  return true;
}

void Caller::read(const SimOp& op, Files::File file, const Target& target) {
  if (unsure(target.history)) {
    settle(op, file, target.history);
    return;
  }
  const std::string name = full(target.path.empty() ? "(no name)" : target.path);
  const std::vector<std::byte> expected = target.history->latest();
  const u64 offset = draw(op, 51, expected.size() + 1);
  std::vector<std::byte> bytes(1 + draw(op, 52, 20'000));
  const auto count = machine_.files.read(file, offset, bytes);
  if (judge(machine_, op, count) != Verdict::done || unsure(target.history)) return;
  const Bytes wanted = Bytes(expected).subspan(offset);
  if (*count > wanted.size() || (*count == 0 && !wanted.empty()))
    return fail(
        op, fmt::format("{} gives {} bytes at {} of {}", name, *count, offset, expected.size()));
  if (!std::equal(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(*count),
                  wanted.begin()))
    fail(op, fmt::format("{} gives wrong bytes in the {} at {}", name, *count, offset));
}

void Caller::fsync(const SimOp& op, Files::File file, const Target& target) {
  const Verdict verdict = judge(machine_, op, machine_.files.fsync(file));
  if (place_->read_only) return;
  if (verdict != Verdict::done) return doubt(target.history);
  if (unsure(target.history) && !settle(op, file, target.history)) return;
  if (machine_.log_may_be_torn()) return;
  if (target.path.empty())
    target.history->acknowledge();
  else
    place_->model.fsync(target.path);
}

void Caller::sync(const SimOp& op) {
  if (judge(machine_, op, machine_.files.sync()) != Verdict::done) return;
  for (const auto& place : own_.places)
    if (!place->names_unsure)
      place->model.sync([&](const History& history) { return unsure(*place, history); });
  own_.durable();
}

}  // namespace latchkey::tests
