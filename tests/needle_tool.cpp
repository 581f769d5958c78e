// What tests of the command line need of another process's memory. Needles come on standard input,
// one a line: a group's name and eight bytes in hexadecimal.
//
//   find pid PID      in every mapping that /proc/PID/mem gives
//   find core FILE    in every segment and note of a core: the notes hold each thread's registers
//   hold              not a search: keeps the needles in its vector registers and nowhere else,
//                     says "ready" and waits for a signal
//   storm PID         not a search: SIGUSR1 to every thread of PID as fast as it can, until
//                     standard input ends
//
// A search prints {"needles", "found": {group: count}, "where": {group: [places]}, "at": {group:
// [addresses]}, "mappings", "unreadable": [names], "bytes", "notes": {type: count}}. Exit 77: this
// process may not read that one's memory. Whatever else goes wrong is 2.

#include <elf.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/procfs.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <unordered_map>

#include "base/types.h"

namespace latchkey::tests {
namespace {

using nlohmann::json;

constexpr int kBroken = 2, kMayNotRead = 77;

[[noreturn]] void stop(const std::string& why, int code = kBroken) {
  fmt::print(stderr, "needle_tool: {}\n", why);
  std::exit(code);
}

class Search {
 public:
  void read_needles(std::istream& in) {
    for (std::string group, hex; in >> group >> hex;) {
      if (hex.size() != 16) stop("a needle is sixteen hexadecimal digits");
      const u64 word = __builtin_bswap64(std::stoull(hex, nullptr, 16));
      ++needles_[group];
      groups_[word].insert(group);
      const u64 bit = hash(word);
      filter_[bit / 64] |= u64{1} << (bit % 64);
    }
    if (groups_.empty()) stop("no needles");
  }

  // `address`: of data[0], in the process that it was read from.
  void look(const char* data, std::size_t size, const std::string& place, u64 address = 0) {
    bytes_ += size;
    for (std::size_t at = 0; at + 8 <= size; ++at) {
      at += zeros_at(data + at, size - at);
      u64 word;
      std::memcpy(&word, data + at, 8);
      const u64 bit = hash(word);
      if (((filter_[bit / 64] >> (bit % 64)) & 1) == 0) continue;
      const auto hit = groups_.find(word);
      if (hit == groups_.end()) continue;
      for (const std::string& group : hit->second) {
        found_[group].insert(word);
        where_[group].insert(place);
        if (address != 0 && at_[group].size() < kPlacesMax) at_[group].insert(address + at);
      }
    }
  }

  json answer;

  void say() {
    answer["needles"] = needles_;
    answer["bytes"] = bytes_;
    for (const auto& [group, count] : needles_) {
      answer["found"][group] = found_[group].size();
      answer["where"][group] = where_[group];
      if (!at_[group].empty()) answer["at"][group] = at_[group];
    }
    fmt::print("{}\n", answer.dump());
  }

 private:
  static constexpr std::size_t kPlacesMax = 16;  // that are told, of a group

  // How many bytes no needle begins in: most of what is mapped was never touched.
  static std::size_t zeros_at(const char* data, std::size_t size) {
    constexpr std::size_t kPage = 4096;
    static constexpr std::array<char, kPage> kZeros{};
    std::size_t zeros = 0;
    while (zeros + kPage + 8 <= size && data[zeros] == 0 &&
           std::memcmp(data + zeros, kZeros.data(), kPage) == 0)
      zeros += kPage;
    return zeros < 8 ? 0 : zeros - 8;
  }
  static u64 hash(u64 word) { return (word * 0x9e3779b97f4a7c15U) >> 44; }

  std::map<std::string, u64> needles_;
  std::unordered_map<u64, std::set<std::string>> groups_;
  std::vector<u64> filter_ = std::vector<u64>(16384);
  std::map<std::string, std::set<u64>> found_;
  std::map<std::string, std::set<std::string>> where_;
  std::map<std::string, std::set<u64>> at_;
  u64 bytes_ = 0;
};

struct Mapping {
  u64 first = 0, end = 0;
  std::string name;
};

std::vector<Mapping> mappings_of(const std::string& pid) {
  std::vector<Mapping> list;
  std::ifstream maps("/proc/" + pid + "/maps");
  for (std::string line; std::getline(maps, line);) {
    unsigned long first = 0, end = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx", &first, &end) != 2) stop("maps cannot be read");
    const std::size_t name_at = line.find_first_of("/[");
    list.push_back({first, end, name_at == std::string::npos ? "anonymous" : line.substr(name_at)});
  }
  if (list.empty()) stop("that process has no mappings, or is not there");
  return list;
}

// The kernel's own pages, which it may refuse to everybody: clocks, an entry that is no longer
// used, the addresses and lengths of requests.
bool may_be_refused(const std::string& name) {
  constexpr std::array<std::string_view, 3> kNames = {"[vvar", "[vsyscall]", "[io_uring]"};
  return std::ranges::any_of(kNames, [&](auto start) { return name.starts_with(start); });
}

bool still_mapped(const std::string& pid, u64 at) {
  const auto list = mappings_of(pid);
  return std::ranges::any_of(list, [&](const Mapping& m) { return m.first <= at && at < m.end; });
}

void search_process(Search& search, const std::string& pid) {
  const int memory = ::open(("/proc/" + pid + "/mem").c_str(), O_RDONLY | O_CLOEXEC);
  if (memory < 0 && (errno == EACCES || errno == EPERM))
    stop("this process may not read that one's memory", kMayNotRead);
  if (memory < 0) stop("that process's memory cannot be opened");
  std::vector<char> buffer(1 << 20);
  constexpr std::size_t kOverlap = 7;
  u64 mappings = 0;
  std::set<std::string> unreadable;
  for (const auto& [first, end, name] : mappings_of(pid)) {
    ++mappings;
    for (u64 at = first; at < end;) {
      const std::size_t wanted = std::min<std::size_t>(buffer.size(), end - at);
      const ssize_t got = ::pread(memory, buffer.data(), wanted, static_cast<off_t>(at));
      if (got <= 0) {
        if (!may_be_refused(name) && still_mapped(pid, at)) unreadable.insert(name);
        break;
      }
      search.look(buffer.data(), static_cast<std::size_t>(got), name, at);
      at += static_cast<std::size_t>(got);
      if (at < end && got > static_cast<ssize_t>(kOverlap)) at -= kOverlap;
    }
  }
  ::close(memory);
  search.answer["mappings"] = mappings;
  search.answer["unreadable"] = unreadable;
}

// Which threads have a note of that kind; a thread's registers follow its NT_PRSTATUS.
using NoteThreads = std::map<std::string, std::vector<int>>;

// Notes are looked at one by one, so that a hit says in which register set of which thread.
void search_notes(Search& search, const char* notes, std::size_t size, NoteThreads& threads) {
  static const std::map<u32, std::string> kNames = {
      {NT_PRSTATUS, "NT_PRSTATUS"}, {NT_FPREGSET, "NT_FPREGSET"}, {NT_X86_XSTATE, "NT_X86_XSTATE"}};
  const auto padded = [](std::size_t bytes) { return (bytes + 3) / 4 * 4; };
  int thread = 0;
  for (std::size_t at = 0; at + sizeof(Elf64_Nhdr) <= size;) {
    Elf64_Nhdr header;
    std::memcpy(&header, notes + at, sizeof header);
    const std::size_t data = at + sizeof header + padded(header.n_namesz);
    if (data + header.n_descsz > size) stop("a note is cut off");
    const auto known = kNames.find(header.n_type);
    const std::string name = known == kNames.end() ? "another note" : known->second;
    if (header.n_type == NT_PRSTATUS) {
      if (header.n_descsz < sizeof(prstatus_t)) stop("a thread's status is cut off");
      std::memcpy(&thread, notes + data + offsetof(prstatus_t, pr_pid), sizeof thread);
    }
    threads[name].push_back(thread);
    search.look(notes + data, header.n_descsz, fmt::format("{} of thread {}", name, thread));
    at = data + padded(header.n_descsz);
  }
}

void search_core(Search& search, const std::string& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat status{};
  if (file < 0 || ::fstat(file, &status) != 0) stop("the core cannot be opened");
  const auto size = static_cast<std::size_t>(status.st_size);
  void* mapped = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file, 0);
  if (mapped == MAP_FAILED) stop("the core cannot be mapped");
  const char* bytes = static_cast<const char*>(mapped);
  Elf64_Ehdr header;
  if (size < sizeof header) stop("the core is cut off");
  std::memcpy(&header, bytes, sizeof header);
  if (std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 || header.e_type != ET_CORE)
    stop("that is no core");
  u64 segments = 0;
  NoteThreads notes;
  for (u32 i = 0; i < header.e_phnum; ++i) {
    Elf64_Phdr segment;
    std::memcpy(&segment, bytes + header.e_phoff + i * sizeof segment, sizeof segment);
    if (segment.p_offset + segment.p_filesz > size) stop("the core is cut off");
    const char* data = bytes + segment.p_offset;
    if (segment.p_type == PT_NOTE) search_notes(search, data, segment.p_filesz, notes);
    if (segment.p_type != PT_LOAD) continue;
    ++segments;
    search.look(data, segment.p_filesz, fmt::format("segment {:x}", segment.p_vaddr));
  }
  if (segments == 0 || notes.empty()) stop("the core is empty");
  search.answer["mappings"] = segments;
  search.answer["notes"] = notes;
}

// ---- hold

constexpr std::size_t kHeldBytes = 64;
alignas(64) std::array<unsigned char, kHeldBytes> g_held;
std::array<char, 4096> g_text;

int digit(char c) { return c <= '9' ? c - '0' : c - 'a' + 10; }

// Into the registers, out of the memory, and never back: in one piece of assembly.
[[noreturn]] void keep_in_registers() {
  const bool wide = __builtin_cpu_supports("avx512f");
  static const char ready[] = "ready\n";
  asm volatile(
      "cmpl $0, %[wide]\n\tje 1f\n\t"
      "vmovdqu64 (%[held]), %%zmm17\n\tvmovdqu64 (%[held]), %%zmm31\n\t"
      "1: movdqu (%[held]), %%xmm3\n\tmovdqu 16(%[held]), %%xmm4\n\t"
      "movdqu 32(%[held]), %%xmm9\n\tmovdqu 48(%[held]), %%xmm15\n\t"
      "movq %[held], %%rdi\n\tmovl $64, %%ecx\n\txorl %%eax, %%eax\n\trep stosb\n\t"
      "movq %[text], %%rdi\n\tmovl $4096, %%ecx\n\trep stosb\n\t"
      "movl $1, %%eax\n\tmovl $1, %%edi\n\tmovq %[ready], %%rsi\n\tmovl $6, %%edx\n\tsyscall\n\t"
      "2: movl $34, %%eax\n\tsyscall\n\tjmp 2b\n\t"
      :
      : [held] "b"(g_held.data()), [text] "r"(g_text.data()), [ready] "r"(&ready[0]),
        [wide] "r"(static_cast<int>(wide))
      : "rax", "rcx", "rdx", "rsi", "rdi", "r11", "xmm3", "xmm4", "xmm9", "xmm15", "memory", "cc");
  __builtin_unreachable();
}

// The digits are read without the library's buffers, where they would stay.
[[noreturn]] void hold() {
  std::size_t size = 0;
  for (ssize_t got; (got = ::read(0, g_text.data() + size, g_text.size() - size)) > 0;)
    size += static_cast<std::size_t>(got);
  std::size_t held = 0;
  for (std::size_t at = 0; at < size && held < kHeldBytes; ++at) {
    if (g_text[at] != ' ') continue;
    for (std::size_t i = at + 1; i + 1 < size && g_text[i] != '\n'; i += 2)
      g_held[held++] = static_cast<unsigned char>(digit(g_text[i]) << 4 | digit(g_text[i + 1]));
  }
  if (held != kHeldBytes) stop("hold takes eight needles");
  keep_in_registers();
}

void storm(const std::string& pid) {
  const pid_t process = std::stoi(pid);
  for (pollfd input{.fd = 0, .events = POLLIN, .revents = 0}; ::poll(&input, 1, 0) == 0;)
    for (const auto& task : std::filesystem::directory_iterator("/proc/" + pid + "/task"))
      ::syscall(SYS_tgkill, process, std::stoi(task.path().filename()), SIGUSR1);
}

}  // namespace
}  // namespace latchkey::tests

int main(int count, char** words) {
  using namespace latchkey::tests;
  const std::vector<std::string> given(words + 1, words + count);
  if (given.size() == 1 && given[0] == "hold") hold();
  if (given.size() == 2 && given[0] == "storm") {
    storm(given[1]);
    return 0;
  }
  if (given.size() != 3 || given[0] != "find")
    stop("find pid PID, find core FILE, hold, storm PID");
  Search search;
  search.read_needles(std::cin);
  if (given[1] == "pid")
    search_process(search, given[2]);
  else
    search_core(search, given[2]);
  search.say();
  return 0;
}
