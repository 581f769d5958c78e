#include "tests/support/crash_states.h"

#include <algorithm>
#include <map>
#include <random>
#include <set>

#include "base/checksum.h"

namespace latchkey::tests {

namespace {

constexpr u32 kSectorsPerPage = kSimPage / kSector;
// Of a long write the first sectors only: behind them it is data, whose tears are alike.
constexpr u32 kTearsMax = 64;

u64 mixed(u64 page, u64 hash) {
  const std::array<u64, 2> both{page, hash};
  return hash64(std::as_bytes(std::span(both)));
}

}  // namespace

u64 hash_of(const SimPagePtr& page) { return page ? hash64(*page) : 0; }

Epoch::Epoch(SimImage base, std::vector<Write> writes, u64 begin, u64 end)
    : base_(std::move(base)), writes_(std::move(writes)), begin_(begin), end_(end) {
  for (u32 i = 0; i < writes_.size(); ++i) {
    const LogWrite& write = *writes_[i].write;
    for (u32 p = 0; p < write.pages.size(); ++p)
      touching_[write.first_page + p].push_back({i, p, hash_of(write.pages[p])});
  }
}

Fates Epoch::all() const {
  Fates fates(writes_.size());
  for (std::size_t i = 0; i < fates.size(); ++i) fates[i] = sectors(i);
  return fates;
}

u64 Epoch::earliest(const Fates& fates) const {
  u64 moment = begin_;
  for (std::size_t i = 0; i < fates.size(); ++i)
    if (fates[i] != 0) moment = std::max(moment, writes_[i].moment);
  return moment;
}

// Later writes over earlier ones, sector by sector.
SimPagePtr Epoch::page(u64 index, const std::vector<Touch>& touches, const Fates& fates) const {
  SimPagePtr now = base_.page(index);
  for (const Touch& touch : touches) {
    const u32 before = touch.page * kSectorsPerPage;
    const u32 kept = std::min(kSectorsPerPage, std::max(fates[touch.write], before) - before);
    const SimPagePtr& written = writes_[touch.write].write->pages[touch.page];
    if (kept == kSectorsPerPage) now = written;
    if (kept == 0 || kept == kSectorsPerPage) continue;
    SimPage torn{};
    if (now) torn = *now;
    const SimPage zeros{};
    std::ranges::copy(Bytes(written ? *written : zeros).first(kept * kSector), torn.begin());
    now = make_sim_page(torn);
  }
  return now;
}

SimImage Epoch::image(const Fates& fates) const {
  SimImage image = base_;
  for (const auto& [index, touches] : touching_) image.set_page(index, page(index, touches, fates));
  return image;
}

u64 Epoch::page_hash(u64 index, const Fates& fates) const {
  const auto it = touching_.find(index);
  if (it == touching_.end()) return hash_of(base_.page(index));
  const std::vector<Touch>& touches = it->second;
  const Touch& last = touches.back();
  if (fates[last.write] >= (last.page + 1) * kSectorsPerPage) return last.hash;
  return hash_of(page(index, touches, fates));
}

u64 Epoch::image_hash(const Fates& fates) const {
  u64 hash = 0;
  for (const auto& [index, touches] : touching_) hash ^= mixed(index, page_hash(index, fates));
  return hash;
}

namespace {

// What the log says up to some event.
struct Replay {
  SimImage durable;
  std::map<u64, u64> open;               // writes that no flush covers: number -> moment
  std::map<u64, std::set<u64>> covered;  // by the flush: writes that were completed before it
  std::set<u64> completed;
  u64 moment = 0;
};

void apply(const LogWrite& write, SimImage& image) {
  for (u64 p = 0; p < write.pages.size(); ++p) image.set_page(write.first_page + p, write.pages[p]);
}

}  // namespace

void for_each_epoch(const SimImage& start, const DeviceLog& log,
                    const std::function<void(const Epoch&)>& fn) {
  Replay now;
  now.durable = start;
  u64 begin = 0;
  const auto end_epoch = [&] {
    std::vector<Epoch::Write> writes;
    for (const auto& [number, moment] : now.open)
      writes.push_back({&log.writes[number], std::max(begin, moment)});
    fn(Epoch(now.durable, std::move(writes), begin, now.moment));
    begin = now.moment;
  };
  for (const LogEvent& event : log.events) {
    switch (event.kind) {
      case LogEvent::Kind::read:
        break;
      case LogEvent::Kind::moment:
        now.moment = event.number;
        break;
      case LogEvent::Kind::write:
        now.open.emplace(event.number, now.moment);
        break;
      case LogEvent::Kind::completed:
        now.completed.insert(event.number);
        break;
      case LogEvent::Kind::flush:
        now.covered[event.number] = now.completed;
        break;
      case LogEvent::Kind::flushed:
        end_epoch();
        for (const u64 number : now.covered[event.number]) {
          if (now.open.erase(number) != 0) apply(log.writes[number], now.durable);
          now.completed.erase(number);
        }
        now.covered.erase(event.number);
        break;
    }
  }
  end_epoch();
}

namespace {

void tear_each(const Epoch& epoch, const std::function<void(const Fates&)>& fn) {
  for (std::size_t i = 0; i < epoch.writes().size(); ++i)
    for (const bool others : {true, false}) {
      Fates fates = others ? epoch.all() : epoch.none();
      const u32 whole = epoch.sectors(i);
      for (u32 kept = 1; kept < std::min(whole, kTearsMax); ++kept) {
        fates[i] = kept;
        fn(fates);
      }
    }
}

void tear_superblocks(const Epoch& epoch, const StateBudget& budget,
                      const std::function<void(const Fates&)>& fn) {
  if (!budget.superblock) return;
  std::vector<std::size_t> places;
  for (std::size_t i = 0; i < epoch.writes().size(); ++i)
    if (budget.superblock(epoch.writes()[i].write->first_page)) places.push_back(i);
  for (std::size_t a = 0; a < places.size(); ++a)
    for (std::size_t b = a + 1; b < places.size(); ++b) {
      Fates fates = epoch.all();
      for (u32 first = 0; first <= epoch.sectors(places[a]); ++first)
        for (u32 second = 0; second <= epoch.sectors(places[b]); ++second) {
          fates[places[a]] = first;
          fates[places[b]] = second;
          fn(fates);
        }
    }
}

void sample_subsets(const Epoch& epoch, const StateBudget& budget,
                    const std::function<void(const Fates&)>& fn) {
  const std::size_t count = epoch.writes().size();
  const Fates all = epoch.all();
  Fates prefix = epoch.none();
  fn(prefix);
  for (std::size_t i = 0; i < count; ++i) {
    prefix[i] = all[i];
    fn(prefix);
    Fates dropped = all;
    dropped[i] = 0;
    fn(dropped);
    Fates alone = epoch.none();
    alone[i] = all[i];
    fn(alone);
  }
  std::mt19937_64 random(budget.seed);
  for (u32 n = 0; n < budget.random_subsets; ++n) {
    Fates fates = all;
    for (u32& fate : fates) fate = random() % 2 == 0 ? 0 : fate;
    fn(fates);
  }
}

}  // namespace

void for_each_state(const Epoch& epoch, const StateBudget& budget,
                    const std::function<void(const Fates&)>& fn) {
  const std::size_t count = epoch.writes().size();
  if (count > budget.subsets_up_to) {
    sample_subsets(epoch, budget, fn);
  } else {
    const Fates all = epoch.all();
    for (u64 subset = 0; subset < u64{1} << count; ++subset) {
      Fates fates = epoch.none();
      for (std::size_t i = 0; i < count; ++i)
        if ((subset >> i & 1) != 0) fates[i] = all[i];
      fn(fates);
    }
  }
  tear_each(epoch, fn);
  tear_superblocks(epoch, budget, fn);
}

std::string to_text(const Epoch& epoch, const Fates& fates) {
  std::string text;
  for (std::size_t i = 0; i < fates.size(); ++i) {
    if (i != 0) text += '-';
    const bool torn = fates[i] != 0 && fates[i] != epoch.sectors(i);
    text += torn ? "t" + std::to_string(fates[i]) : fates[i] == 0 ? "0" : "1";
  }
  return text;
}

}  // namespace latchkey::tests
