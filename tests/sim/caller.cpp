#include "tests/sim/caller.h"

#include <fmt/format.h>

namespace latchkey::tests {

namespace {

u64 mix(u64 value) {
  value = (value ^ value >> 30U) * 0xbf58476d1ce4e5b9U;
  value = (value ^ value >> 27U) * 0x94d049bb133111ebU;
  return value ^ value >> 31U;
}

}  // namespace

u64 Caller::draw(const SimOp& op, u64 salt, u64 bound) const {
  return mix(op.seed + salt * 0x9e3779b97f4a7c15U) % bound;
}

std::optional<std::string> Caller::some_of(const std::vector<std::string>& list, const SimOp& op,
                                           u64 salt) const {
  if (list.empty()) return std::nullopt;
  return list[draw(op, salt, list.size())];
}

void Caller::fail(const SimOp& op, const std::string& what) {
  machine_.world.fail(
      fmt::format("op {} ({} of caller {}): {}", op.number, name_of(op.kind), op.caller, what));
}

void Caller::run() {
  for (const SimOp& op : machine_.plan.ops) {
    if (op.life != machine_.life || op.caller != number_) continue;
    if (machine_.over()) break;
    ++machine_.world.calls;
    act(op);
  }
  for (const OpenFile& open : open_) (void)machine_.files.close_file(open.file);
  for (const auto& place : own_.places) place->nameless.clear();
}

void Caller::act(const SimOp& op) {
  place_ = own_.places.front();
  if (own_.places.size() > 1 && draw(op, 91, 3) == 0)
    place_ = own_.places[draw(op, 92, own_.places.size())];
  switch (op.kind) {
    case SimOpKind::wait:
      return machine_.scheduler.sleep_until(machine_.scheduler.now_ns() + draw(op, 1, 4'000'000));
    case SimOpKind::add_key:
    case SimOpKind::remove_soft:
    case SimOpKind::remove_hard:
      return act_on_key(op);
    case SimOpKind::block_write:
    case SimOpKind::block_read:
    case SimOpKind::block_fsync:
      return act_on_blocks(op);
    case SimOpKind::name_create:
    case SimOpKind::name_unlink:
    case SimOpKind::name_rename:
      return act_on_shared_names(op);
    case SimOpKind::scrub:
      return scrub(op);
    case SimOpKind::subvolume:
    case SimOpKind::snapshot:
      return make_place(op);
    case SimOpKind::drop_snapshot:
    case SimOpKind::finish_drops:
      return drop_place(op);
    case SimOpKind::sync:
      return sync(op);
    case SimOpKind::close:
      return close(op);
    default:
      break;
  }
  if (place_->names_unsure) return;
  switch (op.kind) {
    case SimOpKind::list:
      return list(op);
    case SimOpKind::read_link:
      return read_link(op);
    case SimOpKind::write:
    case SimOpKind::append:
    case SimOpKind::read:
    case SimOpKind::truncate:
    case SimOpKind::punch:
    case SimOpKind::allocate:
    case SimOpKind::clone:
    case SimOpKind::fsync:
    case SimOpKind::open:
      return act_on_file(op);
    default:
      return act_on_names(op);
  }
}

void Caller::compare_at_rest() {
  for (const auto& place : own_.places) {
    place_ = place;
    for (const std::string& path : place->model.files()) {
      if (place->names_unsure || machine_.over()) break;
      const SimOp at_end{.number = ~u32{0}, .life = machine_.life, .caller = number_};
      const auto file = machine_.files.open_file(full(path), {});
      if (judge(machine_, at_end, file) != Verdict::done) continue;
      const History history = place->model.history(path);
      if (unsure(history)) {
        settle(at_end, *file, history);
      } else {
        const auto bytes = machine_.files.read_all(*file);
        if (judge(machine_, at_end, bytes) == Verdict::done && *bytes != history->latest())
          fail(at_end, full(path) + " is not what was written");
      }
      (void)judge(machine_, at_end, machine_.files.close_file(*file));
    }
  }
}

}  // namespace latchkey::tests
