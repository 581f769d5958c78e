#include "cli/torture_writer.h"

#include <fmt/format.h>

#include "base/wait.h"
#include "cli/target.h"

namespace latchkey::cli {

namespace {

constexpr u32 kFilesAWriter = 4;
constexpr u64 kMillisecond = 1'000'000;  // in ns
constexpr u32 kPatienceMs = 100;         // inside, without the key

}  // namespace

void TortureInside::leave() {
  u64 word = word_;
  for (u64 next = 0; next == 0 || !word_.compare_exchange_weak(word, next);)
    next = word % kEmptied == 1 ? word - 1 + kEmptied : word - 1;
}

bool TortureScene::may_append(u64 size) {
  u64 left = append_bytes;
  while (left >= size && !append_bytes.compare_exchange_weak(left, left - size)) {
  }
  return left >= size;
}

TortureWriter::TortureWriter(TortureScene& scene, u32 number, u64 seed)
    : scene_(scene), random_(seed * 1000 + number) {
  for (u32 i = 0; i < kFilesAWriter; ++i) {
    files.emplace_back();
    files.back().name = fmt::format("writer-{}-file-{}", number, i);
  }
}

void TortureWriter::run() {
  while (!scene_.stop && !broken) {
    if (scene_.rest && random_() % 8 != 0)
      pause_for(kMillisecond / 2);
    else
      visit(files[random_() % files.size()]);
  }
  if (broken) scene_.broken = true;
}

void TortureWriter::visit(TortureFile& file) {
  volume::OpenFlags flags;
  flags.write = flags.create = true;
  auto handle =
      scene_.volume.open_file(caller(), scene_.directory, file.name, flags, 0600, file.name);
  if (!handle) {
    if (handle.error().code == Errc::no_key || handle.error().code == Errc::busy)
      ++writes.refused;
    else if (handle.error().code != Errc::no_space)
      broken = handle.error();
    pause_for(kMillisecond / 5);
    return;
  }
  scene_.inside.enter();
  const u32 count = 1 + static_cast<u32>(random_() % 40);
  for (u32 i = 0; i < count && !scene_.stop && !scene_.rest; ++i) {
    const Wrote wrote = write(file, *handle);
    if (wrote == Wrote::no || (wrote == Wrote::refused && !stays_for_the_key())) break;
  }
  scene_.inside.leave();
  if (auto closed = scene_.volume.close_handle(*handle); !closed) told(file, closed.error());
}

// Half of the time, and not for ever.
bool TortureWriter::stays_for_the_key() {
  if (random_() % 2 == 0) return false;
  pause_for(kMillisecond);
  for (u32 i = 1; i < kPatienceMs && scene_.epoch % 2 == 1; ++i) {
    if (scene_.stop || scene_.rest) return false;
    pause_for(kMillisecond);
  }
  return scene_.epoch % 2 == 0;
}

TortureWriter::Wrote TortureWriter::write(TortureFile& file, volume::HandleId handle) {
  const u32 size = 1 + static_cast<u32>(random_() % kTortureWriteBytesMax);
  const auto seed = static_cast<u32>(random_());
  const u64 epoch = scene_.epoch;
  Result<void> wrote;
  if (scene_.may_append(size))
    wrote = append(file, handle, size, seed);
  else if (!file.records.empty())
    wrote = overwrite(file.records[random_() % file.records.size()], handle, seed);
  else
    return Wrote::no;  // of another file
  if (!wrote) {
    if (wrote.error().code == Errc::no_key) {
      ++writes.refused;
      return Wrote::refused;
    }
    if (wrote.error().code == Errc::no_space)
      pause_for(5 * kMillisecond);
    else
      told(file, wrote.error());
    return Wrote::no;
  }
  acknowledged(epoch);
  if (random_() % 4 == 0)
    if (auto synced = scene_.volume.fsync(handle); !synced) {
      told(file, synced.error());
      return Wrote::no;
    }
  if (random_() % 8 == 0) pause_for(2 * kMillisecond);
  return Wrote::yes;
}

void TortureWriter::acknowledged(u64 epoch_before) {
  const u64 epoch = scene_.epoch;
  ++writes.acknowledged;
  if (epoch % 2 == 1 && epoch == epoch_before) ++writes.after_removal;
  if (epoch / 2 > epoch_before / 2) ++writes.waited;
}

Result<void> TortureWriter::append(TortureFile& file, volume::HandleId handle, u32 size, u32 seed) {
  const MutableBytes data = MutableBytes(buffer_).first(size);
  fill_from_seed(data, seed);
  LK_TRY(const u64 offset, scene_.volume.append(handle, data));
  file.appended(offset, size, seed);
  return {};
}

Result<void> TortureWriter::overwrite(TortureRecord& record, volume::HandleId handle, u32 seed) {
  const MutableBytes data = MutableBytes(buffer_).first(record.size);
  fill_from_seed(data, seed);
  auto wrote = scene_.volume.write(handle, record.offset, data);
  if (!wrote) {
    TortureFile::overwrite_refused(record, seed);
    return std::unexpected(wrote.error());
  }
  TortureFile::overwritten(record, seed);
  return {};
}

void TortureWriter::told(TortureFile& file, const Error& error) {
  if (error.code == Errc::no_key || error.code == Errc::io)
    file.loss_told = true;
  else
    broken = error;
}

}  // namespace latchkey::cli
