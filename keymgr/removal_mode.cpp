#include "keymgr/removal_mode.h"

#include "base/check.h"

namespace latchkey::keymgr {

namespace {

constexpr RemovalRow make(RemovalMode mode, std::string_view name) {
  return RemovalRow{.mode = mode,
                    .name = name,
                    .refuse_when_busy = false,
                    .claim_first = false,
                    .writers = Writers::keep,
                    .dirty = Dirty::flush,
                    .stays = Stays::nothing,
                    .later_io = LaterIo::no_key,
                    .may_lose = false};
}

constexpr std::array<RemovalRow, 8> make_rows() {
  auto soft = make(RemovalMode::soft, "soft");
  soft.claim_first = true;
  soft.dirty = Dirty::flush_busy_later;
  soft.stays = Stays::master;
  soft.later_io = LaterIo::succeeds;

  auto sealed = make(RemovalMode::sealed, "sealed");
  sealed.dirty = Dirty::flush_busy_later;
  sealed.stays = Stays::own_keys;
  sealed.later_io = LaterIo::succeeds;

  auto safe = make(RemovalMode::safe, "safe");
  safe.refuse_when_busy = true;
  safe.writers = Writers::hold;  // calls under way of handles that were closed under them

  auto sync = make(RemovalMode::sync, "sync");
  sync.may_lose = true;

  auto freeze = make(RemovalMode::freeze, "freeze");
  freeze.writers = Writers::hold;

  auto deny = make(RemovalMode::deny, "deny");
  deny.writers = Writers::stop;

  // Wipes first: what is dirty then can only be dropped and counted.
  auto hard = make(RemovalMode::hard, "hard");
  hard.claim_first = true;
  hard.writers = Writers::stop;
  hard.dirty = Dirty::drop;
  hard.may_lose = true;

  auto suspend = make(RemovalMode::suspend, "suspend");
  suspend.writers = Writers::hold;
  suspend.later_io = LaterIo::waits;

  return {soft, sealed, safe, sync, freeze, deny, hard, suspend};
}

constexpr std::array<RemovalRow, 8> kRows = make_rows();

}  // namespace

const RemovalRow& removal_row(RemovalMode mode) {
  const auto index = static_cast<std::size_t>(mode);
  LK_CHECK(index < kRows.size() && kRows[index].mode == mode);
  return kRows[index];
}

std::span<const RemovalRow> removal_rows() { return kRows; }

std::optional<RemovalMode> parse_removal_mode(std::string_view name) {
  for (const RemovalRow& row : kRows)
    if (row.name == name) return row.mode;
  return std::nullopt;
}

}  // namespace latchkey::keymgr
