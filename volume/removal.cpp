// A removal of a key, whatever its mode: what differs is in the mode's row (keymgr/removal_mode.h).
//
//   claim first   door -> commit -> drop, or let leave        soft, hard
//   flush first   door -> flush -> seal -> commit -> drop, or let leave
//
// Up to the commit anything may fail: then door, writers and claim are as before. After it nothing
// does but what soft does for those who have left: who holds a lease was listed before it, and a
// report that memory ends for tells less.

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/no_memory.h"
#include "base/wait.h"
#include "volume/front.h"
#include "volume/removing.h"

namespace latchkey::volume {

namespace {

// Of a removal, and of the one that a deadline turns it into.
constexpr std::size_t kPhasesMax = 16;

}  // namespace

Volume::State::Removing::Removing(State& state, keymgr::Removal& removal, Until until,
                                  RemovalReport& report)
    : state_(state),
      removal_(removal),
      row_(removal.row()),
      id_(removal.key_id()),
      until_(until),
      report_(report),
      last_(state.env.monotonic_ns()),
      refusals_{.id = id_, .writes = {}, .unlisted_pages = 0, .error = {}} {}

Volume::State::Removing::~Removing() {
  if (state_.options.front == nullptr) return;
  Lock lock(state_.table_mutex);
  std::erase(state_.refusals, &refusals_);
}

void Volume::State::Removing::end_phase(std::string_view name) {
  const u64 now = state_.env.monotonic_ns();
  report_.phases.push_back({name, now - last_});
  last_ = now;
}

std::vector<InodePtr> Volume::State::Removing::owners() const {
  return state_.leased(
      [&](u64& cursor, u32 count_max) { return removal_.owners(cursor, count_max); });
}

// Leaves those that nobody uses just now.
void Volume::State::Removing::keep_idle(std::vector<InodePtr>& list) const {
  Lock lock(state_.table_mutex);
  std::erase_if(list, [](const InodePtr& inode) LK_NO_ANALYSIS { return inode->users != 0; });
}

Result<void> Volume::State::Removing::run() {
  const auto prepared = or_no_memory([&]() -> Result<void> {
    if (state_.options.front != nullptr) {
      Lock lock(state_.table_mutex);
      state_.refusals.push_back(&refusals_);
    }
    if (!row_.claim_first) LK_TRYV(prepare());
    // The door is closed: until the end they can only become fewer.
    leased_ = owners();
    return {};
  });
  if (!prepared) {
    removal_.rollback();
    go_back();
    return prepared;
  }
  LK_TRYV(commit());
  if (report_.other_users) return {};
  state_.stop_lingering(id_);
  Result<void> left;
  if (row_.stays == keymgr::Stays::nothing) {
    drop();
    if (row_.may_lose) drop_front_pages();
  } else {
    drop_front_pages();  // of those, too, that were closed since it prepared
    left = let_leave();
  }
  leased_.clear();
  return left;
}

// Where writers are settled nothing comes down after this. What was refused meanwhile is no less
// lost than what a flush cannot write.
Result<void> Volume::State::Removing::take_front_pages() {
  if (state_.options.front == nullptr) return {};
  if (row_.stays == keymgr::Stays::nothing) removal_.stop_page_ins();
  drop_front_pages();
  if (row_.writers != keymgr::Writers::keep) removal_.stop_from_front();
  if (row_.may_lose || !state_.writable() || state_.store->failure()) return {};
  Lock lock(state_.table_mutex);
  if (refusals_.error) return std::unexpected(*refusals_.error);
  return {};
}

// Those that only the front has: of inodes that go at once.
void Volume::State::Removing::drop_front_pages() {
  if (state_.options.front == nullptr) return;
  const bool some_stay = row_.stays != keymgr::Stays::nothing;
  report_.files_cached =
      state_.options.front->drop_pages(id_, some_stay ? Front::Which::closed : Front::Which::all);
  end_phase("front");
}

// A volume that has stopped (D4) writes nothing more: what is dirty is lost, and said to be.
Result<void> Volume::State::Removing::prepare() {
  const bool seals = row_.stays == keymgr::Stays::own_keys;
  LK_TRYV(take_front_pages());
  if (state_.writable() && !state_.store->failure()) {
    std::vector<InodePtr> list = owners();
    if (seals) keep_idle(list);
    const Flushed flushed = state_.flush_many(list, true);
    report_.bytes_flushed = flushed.pages * kPageBytes;
    LK_TRYV(flushed.result);
    if (flushed.pages != 0) LK_TRYV(state_.store->commit());
    for (const InodePtr& inode : list) state_.forget_if_idle(inode);
    end_phase("flush");
  }
  if (!seals || state_.keyring.status(id_, 0).sealed) return {};
  // Who is idle by now and dirty again is sealed with the rest: its keys are its way down.
  leased_ = owners();
  for (const InodePtr& inode : leased_) LK_TRYV(state_.seal(*inode, removal_.number(), report_));
  end_phase("seal");
  return {};
}

void Volume::State::Removing::go_back() {
  report_.own_keys = report_.own_key_bytes = 0;
  if (row_.stays == keymgr::Stays::own_keys)
    state_.unseal(leased_, removal_.number(), removal_.number());
}

Result<void> Volume::State::Removing::commit() {
  keymgr::Suspensions& suspensions = state_.keyring.suspensions();
  const bool waits = row_.later_io == keymgr::LaterIo::waits;
  // Before the wipe, so that whoever meets it finds that he is to wait.
  if (waits) state_.suspend(id_, removal_.claimers(), until_);
  const auto committed = removal_.commit();
  if (!committed || committed->others_remain) {
    if (waits) suspensions.end(id_);
    go_back();
  }
  LK_TRYV(committed);
  report_.other_users = committed->others_remain;
  report_.state = committed->state;
  const bool wiped =
      row_.stays != keymgr::Stays::master || committed->state == keymgr::KeyState::absent;
  if (!report_.other_users && wiped) state_.slots->evict_key(id_);
  if (!report_.other_users && row_.stays == keymgr::Stays::own_keys) check_sealed();
  end_phase("commit");
  return {};
}

// Since the door closed no inode got a lease, so all that are left were sealed.
void Volume::State::Removing::check_sealed() const {
  for (const InodePtr& inode : leased_) {
    SharedLock lease_lock(inode->lease_lock);
    const bool sealed = inode->sealed_keys != nullptr || !inode->key_lease.held();
    LK_CHECK_MSG(sealed || inode->clean() || !state_.keyring.status(id_, 0).sealed,
                 "a secret was sealed away that dirty pages needed");
  }
}

// Those of the inode that are about to be dropped.
void Volume::State::Removing::count_pages(const Inode& inode) {
  if (state_.options.front == nullptr) return;
  (void)or_no_memory([&] {
    for (const u64 page : inode.pages_from(0)) lost_pages_[inode.id()].add(page, 1);
  });
}

void Volume::State::Removing::count_refused() {
  if (state_.options.front == nullptr) return;
  std::vector<Refusals::Write> writes;
  {
    Lock lock(state_.table_mutex);
    std::erase(state_.refusals, &refusals_);
    writes.swap(refusals_.writes);
  }
  for (const Refusals::Write& write : writes) {
    u64 pages = write.pages;
    (void)or_no_memory(
        [&] { pages = lost_pages_[write.inode->id()].add(write.first_page, write.pages); });
    count_lost(*write.inode, pages * kPageBytes);
  }
  if (refusals_.unlisted_pages == 0) return;
  report_.bytes_lost += refusals_.unlisted_pages * kPageBytes;
  report_.files_lost = std::max<u64>(report_.files_lost, 1);
}

void Volume::State::Removing::count_lost(const Inode& inode, u64 bytes) {
  if (bytes == 0) return;
  report_.bytes_lost += bytes;
  const auto row = std::ranges::find(report_.lost, inode.id(), &LostFile::inode);
  if (row != report_.lost.end()) {
    row->bytes += bytes;
    return;
  }
  ++report_.files_lost;
  (void)or_no_memory([&] { name_lost(inode, bytes); });
}

void Volume::State::Removing::name_lost(const Inode& inode, u64 bytes) {
  LostFile lost{inode.id(), {}, bytes};
  {
    Lock lock(state_.table_mutex);
    for (const u64 number : inode.handle_ids)
      if (const auto it = state_.handles.find(number); it != state_.handles.end())
        lost.path = it->second->path;
  }
  if (lost.path.empty()) lost.path = state_.path_of(inode.id()).value_or("");
  report_.lost.push_back(std::move(lost));
}

// The secret is gone: dirty pages under it are dropped and counted, the leases given back. A clean
// inode may have leased the key anew, because it was added again.
void Volume::State::Removing::drop() {
  for (const InodePtr& inode : leased_) {
    u64 lost = 0;
    {
      Lock flush_lock(inode->flush_mutex);
      ExclusiveLock lease_lock(inode->lease_lock);
      if (!inode->key_lease.cut_off()) continue;
      count_pages(*inode);
      lost = state_.lose_pages(*inode);
      inode->sealed_keys.reset();
      state_.keyring.release(inode->key_lease);
    }
    LK_CHECK_MSG(lost == 0 || row_.may_lose || state_.store->failure(),
                 "a secret was wiped that dirty pages needed");
    count_lost(*inode, lost);
    state_.forget_if_idle(inode);
  }
  end_phase("drop");
}

// What nobody uses is flushed with one commit, then its leases go; who is inside does the same at
// the last close. A broken device does not keep a key alive: what it does not take is lost.
// no_memory: what is dirty stays, and another removal goes on.
Result<void> Volume::State::Removing::let_leave() {
  std::vector<InodePtr>& idle = leased_;
  keep_idle(idle);
  for (const InodePtr& inode : idle) state_.forget_if_idle(inode);  // needs no memory
  std::erase_if(idle, [](const InodePtr& inode) { return inode->clean(); });
  const Flushed flushed = state_.flush_many(idle, true);
  report_.bytes_flushed += flushed.pages * kPageBytes;
  if (!flushed.result && state_.may_pass(flushed.result.error())) return flushed.result;
  for (const InodePtr& inode : flushed.failed) {
    u64 lost = 0;
    {
      Lock flush_lock(inode->flush_mutex);
      if (!state_.key_is_leaving(*inode)) continue;  // added again meanwhile: nothing is in a hurry
      lost = state_.lose_pages(*inode);
    }
    count_lost(*inode, lost);
  }
  if (flushed.pages != 0 && !state_.store->commit()) {
    const u64 bytes = flushed.pages * kPageBytes;
    report_.bytes_flushed -= bytes;
    report_.bytes_lost += bytes;
    report_.files_lost += idle.size() - flushed.failed.size();
  }
  for (const InodePtr& inode : idle) state_.forget_if_idle(inode);
  end_phase("leave");
  return {};
}

// A safe removal looks and closes the door in one step: handles come and go under table_mutex.
Result<keymgr::RemovalStart> Volume::State::begin_removal(Caller caller, const crypto::KeyId& id,
                                                          const RemovalRequest& request,
                                                          Until until, RemovalReport& report) {
  if (!keymgr::removal_row(request.mode).refuse_when_busy)
    return keyring.begin_removal(id, caller.uid, request.all_users, request.mode);
  for (;;) {
    {
      Lock lock(table_mutex);
      report.holders = holders(id);
      const auto inside =
          report.holders.empty() ? keymgr::Inside::nobody : keymgr::Inside::somebody;
      auto start = keyring.begin_removal(id, caller.uid, request.all_users, request.mode, inside);
      if (start && !start->another) return start;
      if (!start) {
        if (start.error().code != Errc::busy || !request.wait) return start;
        const u64 now = env.monotonic_ns();
        if (until && now >= *until) return start;
        if (until)
          handle_closed.wait_for(table_mutex, *until - now);
        else
          handle_closed.wait(table_mutex);
        continue;
      }
    }
    keyring.wait_for_removal(id);
  }
}

// A suspended key is absent; what is left of its removal is that others wait for it.
bool Volume::State::end_suspension(Caller caller, const crypto::KeyId& id,
                                   const RemovalRequest& request, Until until) {
  keymgr::Suspensions& suspensions = keyring.suspensions();
  if (request.all_users && caller.uid != 0) return false;  // refused for that
  if (keyring.status(id, caller.uid).state != keymgr::KeyState::absent ||
      !suspensions.may_end(id, caller.uid))
    return false;
  if (request.dry_run) return true;
  if (keymgr::removal_row(request.mode).later_io == keymgr::LaterIo::waits)
    suspend(id, {}, until);
  else
    suspensions.end(id);
  try_again(id);
  return true;
}

Result<void> Volume::State::remove(Caller caller, const crypto::KeyId& id, RemovalRequest request,
                                   Until until, RemovalReport& report) {
  report.mode = request.mode;
  if (end_suspension(caller, id, request, until)) return {};
  const u64 begun = env.monotonic_ns();
  auto started = begin_removal(caller, id, request, until, report);
  const bool late = until && env.monotonic_ns() >= *until;
  if (!started && started.error().code == Errc::busy && request.wait && late) {
    request.mode = request.then;
    request.wait = false;
    return remove(caller, id, request, {}, report);
  }
  LK_TRY(keymgr::RemovalStart start, std::move(started));
  report.phases.push_back({"door", env.monotonic_ns() - begun});
  if (start.claim_only) {
    report.holders.clear();  // who is inside does not matter to a claim
    report.other_users = true;
    report.state = keyring.status(id, caller.uid).state;
    return {};
  }
  Removing removing(*this, *start.removal, until, report);
  const auto ran = or_no_memory([&] { return removing.run(); });
  if (!ran) start.removal->rollback();  // if it has not ended
  removing.count_refused();
  try_again(id);
  LK_TRYV(ran);
  if (report.other_users) return {};
  (void)or_no_memory([&] {
    Lock lock(table_mutex);
    report.files_busy = handles_of_key.contains(id) && removing.leaves_files_busy();
    report.holders = holders(id);
  });
  report.state = keyring.status(id, caller.uid).state;
  // A directory that was opened while it was locked is no reason.
  if (report.state != keymgr::KeyState::incompletely_removed) report.files_busy = false;
  removing.end_phase("report");
  if (report.state != keymgr::KeyState::incompletely_removed) return {};
  if (request.wait) return wait_until_gone(caller, id, request, until, report);
  if (until) go_on_later({*until, caller, id, request});
  return {};
}

Result<void> Volume::State::wait_until_gone(Caller caller, const crypto::KeyId& id,
                                            const RemovalRequest& request, Until until,
                                            RemovalReport& report) {
  const u64 begun = env.monotonic_ns();
  for (u64 now = begun;; now = env.monotonic_ns()) {
    if (until && now >= *until) break;
    report.state = keyring.wait_while_leaving(id, until ? *until - now : kForever);
    if (report.state == keymgr::KeyState::incompletely_removed) continue;
    report.phases.push_back({"wait", env.monotonic_ns() - begun});
    report.holders.clear();
    report.files_busy = false;
    return {};
  }
  report.phases.push_back({"wait", env.monotonic_ns() - begun});
  const auto went_on =
      remove(caller, id, {.mode = request.then, .all_users = request.all_users}, {}, report);
  // Gone or back again in that moment: there is nothing to go on with.
  if (!went_on && went_on.error().code == Errc::no_key) {
    report.state = keyring.status(id, caller.uid).state;
    return {};
  }
  return went_on;
}

Result<void> Volume::remove_key(Caller caller, const crypto::KeyId& id,
                                const RemovalRequest& request, RemovalReport& report) {
  State& state = *state_;
  report = {};
  report.phases.reserve(kPhasesMax);
  report.key_id = id;
  report.mode = request.mode;
  report.dry_run = request.dry_run;
  const keymgr::RemovalRow& row = keymgr::removal_row(request.mode);
  // Where a front is, its calls do not wait for the end of a suspension.
  const bool worker = !state.workers.empty();
  const bool somebody_waits =
      request.wait || (row.later_io == keymgr::LaterIo::succeeds && worker) ||
      (row.later_io == keymgr::LaterIo::waits && (worker || state.options.front == nullptr));
  if (request.deadline_ns && !somebody_waits)
    return fail(Errc::invalid, "this removal leaves nothing that a deadline would end");
  if (request.dry_run) return state.rehearse(caller, id, request, report);
  State::Until until;
  if (request.deadline_ns) until = state.env.monotonic_ns() + *request.deadline_ns;
  return state.remove(caller, id, request, until, report);
}

Result<RemovalReport> Volume::remove_key(Caller caller, const crypto::KeyId& id,
                                         const RemovalRequest& request) {
  RemovalReport report;
  LK_TRYV(remove_key(caller, id, request, report));
  return report;
}

Result<RemovalReport> Volume::remove_key(Caller caller, const crypto::KeyId& id,
                                         keymgr::RemovalMode mode, bool all_users) {
  return remove_key(caller, id, {.mode = mode, .all_users = all_users});
}

// --- deadlines that no caller waits for ----------------------------------------------------------

void Volume::State::go_on_later(const Overdue& removal) {
  {
    Lock lock(worker_mutex);
    overdue.push_back(removal);
  }
  memory.kick();
}

u64 Volume::State::next_overdue_ns() {
  const u64 now = env.monotonic_ns();
  Lock lock(worker_mutex);
  u64 next = kForever;
  for (const Overdue& removal : overdue)
    next = std::min(next, removal.at_ns > now ? removal.at_ns - now : 0);
  if (options.front == nullptr) return next;
  if (const auto late = keyring.suspensions().next_deadline())
    next = std::min(next, *late > now ? *late - now : 0);
  return next;
}

// By a worker. An add takes a key's deadlines away; what is refused now stays as it is.
void Volume::State::remove_overdue() {
  end_late_suspensions();
  std::vector<Overdue> due;
  {
    const u64 now = env.monotonic_ns();
    Lock lock(worker_mutex);
    if (overdue.empty()) return;
    std::erase_if(overdue, [&](const Overdue& removal) {
      if (removal.at_ns > now) return false;
      due.push_back(removal);
      return true;
    });
  }
  if (due.empty()) return;
  const bool away = options.front != nullptr;
  if (away) ++workers_away;
  for (const Overdue& late : due) {
    RemovalReport report;
    const RemovalRequest request{.mode = late.request.then, .all_users = late.request.all_users};
    if (keyring.status(late.id, late.caller.uid).state == keymgr::KeyState::incompletely_removed)
      (void)or_no_memory([&] { return remove(late.caller, late.id, request, {}, report); });
  }
  if (away) --workers_away;
}

}  // namespace latchkey::volume
