#include "cli/memory_scan.h"

#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>

#include "base/secret.h"
#include "base/secret_work.h"

namespace latchkey::cli {

namespace {

constexpr std::size_t kBounceBytes = kMiB;
constexpr std::size_t kNeedleBytes = sizeof(u64);

u64 load_word(const std::byte* bytes) {
  u64 word;
  std::memcpy(&word, bytes, sizeof word);
  return word;
}

struct Mapping {
  u64 first = 0, end = 0;
  bool readable = false, secret = false;
};

// How many bytes no needle begins in, for none is zero: most of what is mapped was never touched.
std::size_t zeros_at(const std::byte* data, std::size_t size) {
  constexpr std::size_t kPage = 4 * kKiB;
  static constexpr std::array<std::byte, kPage> kZeros{};
  std::size_t zeros = 0;
  while (zeros + kPage + kNeedleBytes <= size && data[zeros] == std::byte{} &&
         std::memcmp(data + zeros, kZeros.data(), kPage) == 0)
    zeros += kPage;
  return zeros < kNeedleBytes ? 0 : zeros - kNeedleBytes;
}

std::vector<Mapping> mappings() {
  std::vector<Mapping> list;
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    Mapping mapping;
    unsigned long first = 0, end = 0;
    char access[5] = {};
    if (std::sscanf(line.c_str(), "%lx-%lx %4s", &first, &end, access) != 3) continue;
    mapping.first = first;
    mapping.end = end;
    mapping.readable = access[0] == 'r';
    mapping.secret = line.contains("secretmem");
    if (!line.contains("[vvar") && !line.contains("[vsyscall")) list.push_back(mapping);
  }
  return list;
}

}  // namespace

u64 MemoryScan::hash(u64 word) { return (word * 0x9e3779b97f4a7c15U) >> 44; }

void MemoryScan::add(const std::string& group, Bytes secret) {
  const SecretWork work;
  auto it = std::ranges::find(groups_, group);
  if (it == groups_.end()) it = groups_.insert(groups_.end(), group);
  const auto number = static_cast<u32>(it - groups_.begin());
  for (std::size_t at = 0; at + kNeedleBytes <= secret.size(); at += kNeedleBytes) {
    Needle needle;
    needle.group = number;
    env_.random(std::as_writable_bytes(std::span(&needle.mask, 1)));
    const u64 word = load_word(secret.data() + at);
    if (word == 0) continue;  // a part that is not in use
    needle.masked = word ^ needle.mask;
    const u64 bit = hash(word);
    filter_[bit / 64] |= u64{1} << (bit % 64);
    by_hash_.emplace(bit, needles_.size());
    needles_.push_back(needle);
  }
}

void MemoryScan::look(const std::byte* data, std::size_t size) {
  for (std::size_t at = 0; at + kNeedleBytes <= size; ++at) {
    if (at % 512 == 0) at += zeros_at(data + at, size - at);
    const u64 word = load_word(data + at);
    const u64 bit = hash(word);
    if (((filter_[bit / 64] >> (bit % 64)) & 1) == 0) continue;
    const auto [first, end] = by_hash_.equal_range(bit);
    for (auto it = first; it != end; ++it) {
      Needle& needle = needles_[it->second];
      if ((word ^ needle.mask) == needle.masked) needle.now = needle.ever = true;
    }
  }
}

// From `first` to `end`, in pieces that overlap by more than a needle.
void MemoryScan::look_through(MutableBytes buffer, u64 first, u64 end) {
  for (u64 at = first; at < end; at += buffer.size() - 64) {
    iovec local{buffer.data(), std::min<u64>(buffer.size(), end - at)};
    iovec remote{reinterpret_cast<void*>(at), local.iov_len};
    const ssize_t got = ::process_vm_readv(::getpid(), &local, 1, &remote, 1, 0);
    if (got > 0) look(buffer.data(), static_cast<std::size_t>(got));
  }
}

Result<std::vector<MemoryScan::Group>> MemoryScan::scan() {
  for (Needle& needle : needles_) needle.now = false;
  burn_stack_and_registers();  // what came before this scan is not this scan's
  const SecretWork work;
  // The bounce buffer holds copies of what was looked at: not looked at itself.
  void* bounce = ::mmap(nullptr, kBounceBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (bounce == MAP_FAILED) return fail(Errc::no_memory, "no memory for a scan");
  const u64 own = reinterpret_cast<u64>(bounce), own_end = own + kBounceBytes;
  const MutableBytes buffer(static_cast<std::byte*>(bounce), kBounceBytes);
  for (const Mapping& mapping : mappings()) {
    if (!mapping.readable) continue;
    if (mapping.secret) {
      look(reinterpret_cast<const std::byte*>(mapping.first), mapping.end - mapping.first);
      continue;
    }
    look_through(buffer, mapping.first, std::min(mapping.end, std::max(mapping.first, own)));
    look_through(buffer, std::max(mapping.first, std::min(mapping.end, own_end)), mapping.end);
  }
  wipe(bounce, kBounceBytes);
  ::munmap(bounce, kBounceBytes);
  return groups();
}

std::vector<MemoryScan::Group> MemoryScan::scan_arena() {
  for (Needle& needle : needles_) needle.now = false;
  arena_visit(
      [](void* scan, MutableBytes piece) {
        static_cast<MemoryScan*>(scan)->look(piece.data(), piece.size());
      },
      this);
  return groups();
}

std::vector<MemoryScan::Group> MemoryScan::groups() const {
  std::vector<Group> result;
  result.reserve(groups_.size());
  for (const std::string& name : groups_) result.push_back({name});
  for (const Needle& needle : needles_) {
    Group& group = result[needle.group];
    ++group.needles;
    group.found_now += needle.now ? 1 : 0;
    group.found_ever += needle.ever ? 1 : 0;
  }
  return result;
}

}  // namespace latchkey::cli
