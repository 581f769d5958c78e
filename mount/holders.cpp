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

std::string folder_of(u64 pid) { return "/proc/" + std::to_string(pid); }

void look_at_descriptors(u64 device, const std::set<u64>& wanted, u64 pid, FileUsers& found) {
  for_each_number(folder_of(pid) + "/fd", [&](int directory, u64 number) {
    struct statx facts{};
    const std::string name = std::to_string(number);
    if (::statx(directory, name.c_str(), AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT,
                STATX_INO | STATX_TYPE, &facts) != 0)
      return;
    if (makedev(facts.stx_dev_major, facts.stx_dev_minor) != device) return;
    if (wanted.contains(facts.stx_ino))
      found[facts.stx_ino].emplace(static_cast<u32>(pid), link_of(directory, name));
  });
}

// A line of maps: "BEGIN-END PERMS OFFSET MAJOR:MINOR INODE PATH".
void look_at_mapping(std::string_view line, u64 device, const std::set<u64>& wanted, u64 pid,
                     FileUsers& found) {
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
  if (makedev(static_cast<unsigned>(*high), static_cast<unsigned>(*low)) != device) return;
  if (!wanted.contains(*inode)) return;
  line.remove_prefix(std::min(line.find_first_not_of(' '), line.size()));
  found[*inode].emplace(static_cast<u32>(pid), std::string(line));
}

void look_at_mappings(u64 device, const std::set<u64>& wanted, u64 pid, FileUsers& found) {
  const std::string text = read_text(folder_of(pid) + "/maps");
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    look_at_mapping(std::string_view(text).substr(begin, end - begin), device, wanted, pid, found);
    begin = end + 1;
  }
}

constexpr u32 kScansMax = 8;  // those that are stuck included
std::atomic<u32> scans_under_way{0};

class Scan {
 public:
  Scan(u64 device, const std::set<u64>& wanted) : device_(device), wanted_(wanted) {}

  void run() {
    FileUsers found;
    for_each_number("/proc", [&](int, u64 pid) {
      look_at_descriptors(device_, wanted_, pid, found);
      look_at_mappings(device_, wanted_, pid, found);
    });
    Lock lock(mutex_);
    found_ = std::move(found);
    done_ = true;
    ended_.notify_all();
  }
  FileUsers wait(u64 patience_ns) {
    const u64 end = system_env().monotonic_ns() + patience_ns;
    Lock lock(mutex_);
    for (u64 now = 0; !done_ && (now = system_env().monotonic_ns()) < end;)
      (void)ended_.wait_for(mutex_, end - now);
    return std::move(found_);
  }

 private:
  const u64 device_;
  const std::set<u64> wanted_;
  Mutex mutex_;
  CondVar ended_;
  FileUsers found_ LK_GUARDED_BY(mutex_);
  bool done_ LK_GUARDED_BY(mutex_) = false;
};

}  // namespace

FileUsers processes_with(u64 device, const std::set<u64>& wanted, u64 patience_ns) {
  if (wanted.empty()) return {};
  const auto scan = std::make_shared<Scan>(device, wanted);
  if (scans_under_way.load() >= kScansMax) return {};
  scans_under_way.fetch_add(1);
  try {
    // It may never end, so it is none of base/thread.h's threads, which are joined.
    std::thread([scan] {
      (void)or_no_memory([&] { scan->run(); });
      scans_under_way.fetch_sub(1);
    }).detach();
  } catch (const std::system_error&) {
    scans_under_way.fetch_sub(1);
    return {};
  }
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
  std::map<u64, std::set<u32>> openers;  // that still have what they opened
  for (std::size_t i = 0; i < holders.size(); ++i) {
    holders[i].pid = process_of(holders[i].pid);
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
  }
}

}  // namespace latchkey::mount
