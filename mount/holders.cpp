#include "mount/holders.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <charconv>
#include <memory>
#include <optional>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>

#include "base/env.h"
#include "base/mutex.h"
#include "base/no_memory.h"
#include "mount/companion.h"
#include "mount/unique_fd.h"

namespace latchkey::mount {

namespace {

struct CloseDirectory {
  void operator()(DIR* directory) const { ::closedir(directory); }
};
using Directory = std::unique_ptr<DIR, CloseDirectory>;

std::optional<u64> number_in(std::string_view text, int base = 10) {
  u64 value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return value;
}

// Files of /proc: small, or made line by line; what cannot be read is empty.
std::string read_text(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  std::string text;
  std::array<char, 16384> piece;
  while (fd) {
    const ssize_t got = ::read(fd.get(), piece.data(), piece.size());
    if (got <= 0) break;
    text.append(piece.data(), static_cast<std::size_t>(got));
  }
  return text;
}

template <class Visit>
void for_each_number(const std::string& path, Visit visit) {
  const Directory directory(::opendir(path.c_str()));
  if (!directory) return;
  while (const dirent* entry = ::readdir(directory.get()))
    if (const auto number = number_in(entry->d_name)) visit(::dirfd(directory.get()), *number);
}

std::string link_of(int directory, const std::string& name) {
  std::array<char, 4096> target;
  const ssize_t size = ::readlinkat(directory, name.c_str(), target.data(), target.size());
  return size > 0 ? std::string(target.data(), static_cast<std::size_t>(size)) : std::string();
}

const std::string kProc = "/proc";

std::string folder_of(u64 pid, const std::string& proc = kProc) {
  return proc + "/" + std::to_string(pid);
}

struct Search {
  u64 device = 0;
  std::set<u64> wanted;
  std::string proc;
};

void look_at_descriptors(const Search& search, u64 pid, FileUsers& found) {
  for_each_number(folder_of(pid, search.proc) + "/fd", [&](int directory, u64 number) {
    struct statx facts{};
    const std::string name = std::to_string(number);
    if (::statx(directory, name.c_str(), AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT,
                STATX_INO | STATX_TYPE, &facts) != 0)
      return;
    if (makedev(facts.stx_dev_major, facts.stx_dev_minor) != search.device) return;
    if (search.wanted.contains(facts.stx_ino))
      found[facts.stx_ino].emplace(static_cast<u32>(pid), link_of(directory, name));
  });
}

// A line of maps: "BEGIN-END PERMS OFFSET MAJOR:MINOR INODE PATH".
void look_at_mapping(std::string_view line, const Search& search, u64 pid, FileUsers& found) {
  std::array<std::string_view, 5> fields;
  for (std::string_view& field : fields) {
    const std::size_t begin = line.find_first_not_of(' ');
    if (begin == std::string_view::npos) return;
    line.remove_prefix(begin);
    field = line.substr(0, line.find(' '));
    line.remove_prefix(field.size());
  }
  const std::size_t colon = fields[3].find(':');
  if (colon == std::string_view::npos) return;
  const auto high = number_in(fields[3].substr(0, colon), 16);
  const auto low = number_in(fields[3].substr(colon + 1), 16);
  const auto inode = number_in(fields[4]);
  if (!high || !low || !inode) return;
  if (makedev(static_cast<unsigned>(*high), static_cast<unsigned>(*low)) != search.device) return;
  if (!search.wanted.contains(*inode)) return;
  line.remove_prefix(std::min(line.find_first_not_of(' '), line.size()));
  found[*inode].emplace(static_cast<u32>(pid), std::string(line));
}

void look_at_mappings(const Search& search, u64 pid, FileUsers& found) {
  const std::string text = read_text(folder_of(pid, search.proc) + "/maps");
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    look_at_mapping(std::string_view(text).substr(begin, end - begin), search, pid, found);
    begin = end + 1;
  }
}

// Where each thread is that looks at processes, those of all searches together.
constexpr std::size_t kThreadsMax = 8;
constexpr u64 kFree = 0;
constexpr u64 kNowhere = u64{1} << 62;  // between two processes
constexpr u64 kGivenUp = u64{1} << 63;  // with a process: nobody waits for the thread any more
std::array<std::atomic<u64>, kThreadsMax> places;

std::atomic<u64>* take_place() {
  for (std::atomic<u64>& place : places)
    if (u64 free = kFree; place.compare_exchange_strong(free, kNowhere)) return &place;
  return nullptr;
}

bool is_given_up(u64 pid) {
  return std::ranges::any_of(places,
                             [&](const auto& place) { return place.load() == (pid | kGivenUp); });
}

constexpr u64 kStuckNs = 100'000'000;

// One look through all processes: first at the descriptors of each, then at their mappings, whose
// text waits for the address space of the process. A thread that is longer at one process than
// kStuckNs is passed by another one, which goes on with the next process; nobody looks at the
// mappings of that process again before the first comes back from there.
class Scan : public std::enable_shared_from_this<Scan> {
 public:
  explicit Scan(Search search) : search_(std::move(search)) {
    for_each_number(search_.proc, [&](int, u64 pid) { processes_.push_back(pid); });
  }

  bool start_thread() LK_EXCLUDES(mutex_) {
    std::atomic<u64>* place = take_place();
    if (place == nullptr) return false;
    u64 turn = 0;
    {
      Lock lock(mutex_);
      turn = ++turn_;
      place_ = place;
      begun_ns_ = system_env().monotonic_ns();
    }
    try {
      // It may never end, so it is none of base/thread.h's threads, which are joined.
      std::thread([scan = shared_from_this(), turn, place] {
        be_ordinary();
        scan->work(turn, *place);
        place->store(kFree);
      }).detach();
      return true;
    } catch (const std::system_error&) {
      place->store(kFree);
    } catch (const std::bad_alloc&) {
      place->store(kFree);
    }
    return false;
  }

  // What was found until all was seen, or `patience_ns` has passed.
  FileUsers wait(u64 patience_ns) LK_EXCLUDES(mutex_) {
    const u64 end = system_env().monotonic_ns() + patience_ns;
    bool passed = false;
    for (;;) {
      {
        Lock lock(mutex_);
        const u64 now = system_env().monotonic_ns();
        const u64 stuck = all_begun() ? end : begun_ns_ + kStuckNs;
        if ((all_begun() && inside_ == 0) || now >= end) {
          ++turn_;
          return std::move(found_);
        }
        passed = now >= stuck;
        if (passed && inside_ != 0) place_->fetch_or(kGivenUp);
        if (!passed) (void)ended_.wait_for(mutex_, std::min(stuck, end) - now);
      }
      if (passed && !start_thread()) return give_up();
    }
  }

 private:
  using Look = void (*)(const Search&, u64, FileUsers&);
  struct Step {
    u64 pid = 0;
    Look look = nullptr;
  };

  void work(u64 turn, std::atomic<u64>& place) LK_EXCLUDES(mutex_) {
    while (const auto step = begin_step(turn, place)) {
      FileUsers found;
      (void)or_no_memory([&] { step->look(search_, step->pid, found); });
      end_step(found, place);
    }
  }
  // None: another thread has the turn, or all was seen.
  std::optional<Step> begin_step(u64 turn, std::atomic<u64>& place) LK_EXCLUDES(mutex_) {
    Lock lock(mutex_);
    while (turn == turn_ && !all_begun()) {
      const std::size_t number = next_++;
      const bool mappings = number >= processes_.size();
      const u64 pid = processes_[mappings ? number - processes_.size() : number];
      if (mappings && is_given_up(pid)) continue;
      place.store(pid);
      begun_ns_ = system_env().monotonic_ns();
      ++inside_;
      return Step{pid, mappings ? look_at_mappings : look_at_descriptors};
    }
    ended_.notify_all();
    return std::nullopt;
  }
  void end_step(FileUsers& found, std::atomic<u64>& place) LK_EXCLUDES(mutex_) {
    place.store(kNowhere);
    Lock lock(mutex_);
    (void)or_no_memory([&]() LK_NO_ANALYSIS {
      for (auto& [inode, users] : found) found_[inode].merge(users);
    });
    --inside_;
    ended_.notify_all();
  }
  FileUsers give_up() LK_EXCLUDES(mutex_) {
    Lock lock(mutex_);
    ++turn_;
    return std::move(found_);
  }
  bool all_begun() const LK_REQUIRES(mutex_) { return next_ >= 2 * processes_.size(); }

  const Search search_;
  std::vector<u64> processes_;
  Mutex mutex_;
  CondVar ended_;
  FileUsers found_ LK_GUARDED_BY(mutex_);
  std::size_t next_ LK_GUARDED_BY(mutex_) = 0;
  u32 inside_ LK_GUARDED_BY(mutex_) = 0;                     // threads, of a process's folder
  u64 turn_ LK_GUARDED_BY(mutex_) = 0;                       // which thread goes on
  std::atomic<u64>* place_ LK_GUARDED_BY(mutex_) = nullptr;  // that one's
  u64 begun_ns_ LK_GUARDED_BY(mutex_) = 0;                   // when it began its step
};

// When a process or thread began, by Env::boottime_ns(), in ticks of 10 ms or so.
std::optional<u64> began_ns(u32 pid) {
  constexpr int kBegan = 22 - 3;  // fields behind the name's: the third is the first of them
  const std::string text = read_text(folder_of(pid) + "/stat");
  std::size_t at = text.rfind(')');
  if (at == std::string::npos) return std::nullopt;
  at = std::min(at + 2, text.size());
  for (int i = 0; i < kBegan && at != std::string::npos; ++i) {
    at = text.find(' ', at);
    if (at != std::string::npos) ++at;
  }
  if (at == std::string::npos) return std::nullopt;
  const auto ticks = number_in(std::string_view(text).substr(at, text.find(' ', at) - at));
  if (!ticks) return std::nullopt;
  static const u64 tick_ns = 1'000'000'000 / static_cast<u64>(::sysconf(_SC_CLK_TCK));
  return *ticks * tick_ns;
}

// Whether who has this number now had it then, too. Looked at after whatever was read of it.
bool is_the_same(u32 pid, u64 then_ns) {
  const auto began = began_ns(pid);
  return began && *began <= then_ns;
}

// The process that opened, if it is still there.
u32 opener_of(const volume::Holder& holder) {
  const u32 pid = process_of(holder.pid);
  return pid != 0 && is_the_same(holder.pid, holder.since_boot_ns) ? pid : 0;
}

}  // namespace

FileUsers processes_with(u64 device, const std::set<u64>& wanted, u64 patience_ns,
                         const std::string& proc) {
  if (wanted.empty()) return {};
  const auto scan = std::make_shared<Scan>(Search{device, wanted, proc});
  if (!scan->start_thread()) return {};
  return scan->wait(patience_ns);
}

std::string command_of(u32 pid) {
  std::string name = read_text(folder_of(pid) + "/comm");
  if (name.ends_with('\n')) name.pop_back();
  return name;
}

u32 process_of(u32 thread) {
  if (thread == 0) return 0;
  const std::string text = read_text(folder_of(thread) + "/status");
  const std::size_t at = text.find("\nTgid:\t");
  if (at == std::string::npos) return 0;
  const std::size_t begin = at + 7;
  return static_cast<u32>(
      number_in(std::string_view(text).substr(begin, text.find('\n', begin) - begin)).value_or(0));
}

void name_processes(u64 device, const std::vector<u64>& inodes,
                    std::vector<volume::Holder>& holders) {
  const FileUsers found = processes_with(device, {inodes.begin(), inodes.end()});
  const u64 now = system_env().boottime_ns();
  std::map<u64, std::set<u32>> openers;  // that still have what they opened
  for (std::size_t i = 0; i < holders.size(); ++i) {
    holders[i].pid = opener_of(holders[i]);
    const auto at = found.find(inodes[i]);
    if (at != found.end() && at->second.contains(holders[i].pid))
      openers[inodes[i]].insert(holders[i].pid);
  }
  for (std::size_t i = 0; i < holders.size(); ++i) {
    volume::Holder& holder = holders[i];
    if (const auto at = found.find(inodes[i]); at != found.end()) {
      const std::map<u32, std::string>& users = at->second;
      auto user = users.find(holder.pid);
      if (user == users.end()) {
        const std::set<u32>& known = openers[inodes[i]];
        user = std::ranges::find_if(users,
                                    [&](const auto& one) { return !known.contains(one.first); });
        if (user == users.end()) user = users.begin();
      }
      holder.pid = user->first;
      if (holder.path.empty()) holder.path = user->second;
    }
    holder.command = holder.pid == 0 ? "" : command_of(holder.pid);
    if (holder.pid == 0 || is_the_same(holder.pid, now)) continue;
    holder.pid = 0;
    holder.command.clear();
  }
}

}  // namespace latchkey::mount
