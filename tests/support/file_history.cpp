#include "tests/support/file_history.h"

#include <fmt/format.h>

#include <algorithm>

namespace latchkey::tests {

FileHistory::FileHistory(Bytes durable) : FileHistory() {
  write(0, durable);
  acknowledge();
}

u64 FileHistory::inside(u64 size, u64 block) {
  return size <= block * kBlock ? 0 : std::min(kBlock, size - block * kBlock);
}

FileHistory::Version FileHistory::written(const Version& old, u64 first, Bytes bytes) {
  auto copy = old.bytes ? std::make_shared<std::array<std::byte, kBlock>>(*old.bytes)
                        : std::make_shared<std::array<std::byte, kBlock>>();
  std::ranges::copy(bytes, copy->begin() + static_cast<std::ptrdiff_t>(first));
  return {copy, std::max(old.size, first + bytes.size())};
}

FileHistory::Version FileHistory::cut(const Version& version, u64 size) {
  if (version.size <= size) return version;
  if (!version.bytes) return {nullptr, size};
  auto copy = std::make_shared<std::array<std::byte, kBlock>>(*version.bytes);
  std::fill(copy->begin() + static_cast<std::ptrdiff_t>(size), copy->end(), std::byte{0});
  return {copy, size};
}

void FileHistory::write(u64 offset, Bytes bytes) {
  if (bytes.empty()) return;
  Epoch& epoch = epochs_.back();
  const u64 old_size = epoch.size;
  const u64 end = offset + bytes.size();
  // A hole between the old end and the write: zeros in whatever version the old last block has.
  if (const u64 last = old_size / kBlock; old_size % kBlock != 0 && last < offset / kBlock)
    if (const auto it = epoch.blocks.find(last); it != epoch.blocks.end())
      for (Version& version : it->second) version.size = kBlock;

  for (u64 block = offset / kBlock; block * kBlock < end; ++block) {
    std::vector<Version>& versions = epoch.blocks[block];
    const u64 size_before = inside(old_size, block);
    if (versions.empty() && size_before > 0) versions.push_back({nullptr, size_before});
    const Version old = versions.empty() ? Version{} : versions.back();
    const u64 from = std::max(offset, block * kBlock);
    const u64 to = std::min(end, (block + 1) * kBlock);
    Version version = written(old, from - block * kBlock, bytes.subspan(from - offset, to - from));
    version.size = std::max(version.size, size_before);
    versions.push_back(std::move(version));
  }
  epoch.size = std::max(old_size, end);
  epoch.sizes.insert(epoch.size);
}

void FileHistory::truncate(u64 size) {
  const Epoch& old = epochs_.back();
  Epoch epoch;
  epoch.size = size;
  epoch.sizes = {size};
  for (const auto& [block, versions] : old.blocks) {
    if (inside(size, block) == 0) continue;
    std::vector<Version>& kept = epoch.blocks[block];
    for (const Version& version : versions) {
      kept.push_back(cut(version, inside(size, block)));
      // It grew: zeros behind the old last block, whatever version that has.
      if (size > old.size && block == old.size / kBlock) kept.back().size = inside(size, block);
    }
  }
  epochs_.push_back(std::move(epoch));
}

void FileHistory::acknowledge() {
  epochs_.erase(epochs_.begin(), epochs_.end() - 1);
  Epoch& epoch = epochs_.back();
  epoch.sizes = {epoch.size};
  std::erase_if(epoch.blocks,
                [&](const auto& entry) { return inside(epoch.size, entry.first) == 0; });
  for (auto& [block, versions] : epoch.blocks) {
    versions.erase(versions.begin(), versions.end() - 1);
    versions.back().size = inside(epoch.size, block);
  }
}

// One epoch that holds all versions of all epochs, and these contents as the newest.
void FileHistory::settle(Bytes contents) {
  Epoch all;
  all.size = contents.size();
  all.sizes = {contents.size()};
  u64 blocks = (contents.size() + kBlock - 1) / kBlock;
  for (const Epoch& epoch : epochs_) {
    all.sizes.insert(epoch.sizes.begin(), epoch.sizes.end());
    for (const auto& [block, versions] : epoch.blocks) blocks = std::max(blocks, block + 1);
  }
  for (u64 block = 0; block < blocks; ++block) {
    std::vector<Version>& into = all.blocks[block];
    for (const Epoch& epoch : epochs_) {
      const auto it = epoch.blocks.find(block);
      if (it == epoch.blocks.end())
        into.push_back({nullptr, kBlock});
      else
        into.insert(into.end(), it->second.begin(), it->second.end());
    }
    const u64 size = inside(contents.size(), block);
    into.push_back(size == 0 ? Version{nullptr, kBlock}
                             : written({}, 0, contents.subspan(block * kBlock, size)));
  }
  epochs_.push_back(std::move(all));
}

std::vector<std::byte> FileHistory::latest() const {
  const Epoch& epoch = epochs_.back();
  std::vector<std::byte> contents(epoch.size);
  for (const auto& [block, versions] : epoch.blocks)
    if (versions.back().bytes)
      std::copy_n(versions.back().bytes->begin(), inside(epoch.size, block),
                  contents.begin() + static_cast<std::ptrdiff_t>(block * kBlock));
  return contents;
}

bool FileHistory::agrees(const Version& version, Bytes contents) {
  if (version.size < contents.size()) return false;
  if (version.bytes) return std::equal(contents.begin(), contents.end(), version.bytes->begin());
  return std::ranges::all_of(contents, [](std::byte byte) { return byte == std::byte{0}; });
}

std::optional<std::string> FileHistory::explain_in(const Epoch& epoch, Bytes contents) {
  const u64 size = contents.size();
  // While a file grows, whole blocks of the write may be there without the rest.
  const bool growing =
      size % kBlock == 0 && size >= *epoch.sizes.begin() && size <= *epoch.sizes.rbegin();
  if (!growing && !epoch.sizes.contains(size))
    return fmt::format("{} bytes, a size that it never had", size);
  for (u64 block = 0; block * kBlock < size; ++block) {
    const Bytes part = contents.subspan(block * kBlock, inside(size, block));
    const auto it = epoch.blocks.find(block);
    const bool good =
        it == epoch.blocks.end()
            ? agrees({nullptr, kBlock}, part)
            : std::ranges::any_of(it->second, [&](const Version& v) { return agrees(v, part); });
    if (!good)
      return fmt::format("block {} of a file of {} bytes is none of its {} versions", block, size,
                         it == epoch.blocks.end() ? 1 : it->second.size());
  }
  return std::nullopt;
}

std::optional<std::string> FileHistory::explain(Bytes contents) const {
  std::string wrong;
  for (const Epoch& epoch : epochs_) {
    const auto in_epoch = explain_in(epoch, contents);
    if (!in_epoch) return std::nullopt;
    if (wrong.find(*in_epoch) == std::string::npos)
      wrong += (wrong.empty() ? "" : "; after a truncate: ") + *in_epoch;
  }
  return wrong;
}

}  // namespace latchkey::tests
