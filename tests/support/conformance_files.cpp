// Operations on open files.

#include <algorithm>

#include "tests/support/conformance_world.h"

namespace latchkey::tests {

using namespace volume;  // NOLINT: the whole file is about it

namespace {

constexpr char kFill = 'd';

Bytes bytes_of(const std::string& text) { return std::as_bytes(std::span(text)); }

u64 number(const std::string& word) { return std::stoull(word); }

std::string data_ok(const std::string& seen, const std::string& wanted) {
  return std::string("data_ok=") + (seen.starts_with(wanted) ? "1" : "0");
}

}  // namespace

Outcome ConformanceWorld::open(const Words& words) {
  const auto handle = open_path(words.at(1), words.at(2));
  if (!handle) return outcome_of(handle);
  return outcome_of(volume_->close_handle(*handle));
}

Outcome ConformanceWorld::hold(const Words& words) {
  const auto handle = open_path(words.at(2), words.at(3));
  if (handle) handles_[words.at(1)] = *handle;
  return outcome_of(handle);
}

Outcome ConformanceWorld::close(const Words& words) {
  return outcome_of(volume_->close_handle(handles_.at(words.at(1))));
}

Outcome ConformanceWorld::open_in(const Words& words) {
  const auto directory = volume_->stat(handles_.at(words.at(1)));
  if (!directory) return outcome_of(directory);
  const auto handle = open_at(directory->inode, words.at(2), words.at(3), words.at(2));
  if (!handle) return outcome_of(handle);
  return outcome_of(volume_->close_handle(*handle));
}

Outcome ConformanceWorld::put(const Words& words) {
  return count_outcome(put_text(words.at(1), "make", words.at(2)));
}

Outcome ConformanceWorld::overwrite(const Words& words) {
  return count_outcome(put_text(words.at(1), "w", words.at(2)));
}

Outcome ConformanceWorld::get(const Words& words) {
  const auto text = get_text(words.at(1), number(words.at(2)));
  if (!text) return outcome_of(text);
  return {"n=" + std::to_string(text->size()), words.size() > 3 ? data_ok(*text, words[3]) : ""};
}

Outcome ConformanceWorld::get_filled(const Words& words) {
  static constexpr std::size_t kMore = 2 << 20;  // than any file here has
  const auto text = get_text(words.at(1), kMore);
  if (!text) return outcome_of(text);
  const auto wrong = std::ranges::count_if(*text, [](char c) { return c != kFill; });
  return {"n=" + std::to_string(text->size()), "wrong_bytes=" + std::to_string(wrong)};
}

Outcome ConformanceWorld::read(const Words& words) {
  std::string text(number(words.at(3)), '?');
  const auto got = volume_->read(handles_.at(words.at(1)), number(words.at(2)),
                                 std::as_writable_bytes(std::span(text)));
  Outcome outcome = count_outcome(got);
  if (got && words.size() > 4) outcome.detail = data_ok(text, words[4]);
  return outcome;
}

Outcome ConformanceWorld::write(const Words& words) {
  return count_outcome(
      volume_->write(handles_.at(words.at(1)), number(words.at(2)), bytes_of(words.at(3))));
}

Outcome ConformanceWorld::append(const Words& words) {
  const auto offset = volume_->append(handles_.at(words.at(1)), bytes_of(words.at(2)));
  if (!offset) return outcome_of(offset);
  return {"n=" + std::to_string(words[2].size())};
}

Outcome ConformanceWorld::fill(const Words& words) {
  const std::string text(number(words.at(3)), kFill);
  return count_outcome(
      volume_->write(handles_.at(words.at(1)), number(words.at(2)), bytes_of(text)));
}

Outcome ConformanceWorld::truncate(const Words& words) {
  return outcome_of(volume_->truncate(handles_.at(words.at(1)), number(words.at(2))));
}

Outcome ConformanceWorld::truncate_path(const Words& words) {
  const auto handle = open_path(words.at(1), "w");
  if (!handle) return outcome_of(handle);
  const auto cut = volume_->truncate(*handle, number(words.at(2)));
  const auto closed = volume_->close_handle(*handle);
  return outcome_of(cut ? closed : cut);
}

Outcome ConformanceWorld::allocate(const Words& words) {
  return outcome_of(
      volume_->allocate(handles_.at(words.at(1)), number(words.at(2)), number(words.at(3))));
}

Outcome ConformanceWorld::fsync(const Words& words) {
  return outcome_of(volume_->fsync(handles_.at(words.at(1))));
}

Outcome ConformanceWorld::fsync_directory(const Words& words) {
  const auto handle = open_path(words.at(1), "directory");
  if (!handle) return outcome_of(handle);
  const auto synced = volume_->fsync(*handle);
  const auto closed = volume_->close_handle(*handle);
  return outcome_of(synced ? closed : synced);
}

Outcome ConformanceWorld::fstat(const Words& words) {
  return outcome_of(volume_->stat(handles_.at(words.at(1))));
}

Outcome ConformanceWorld::write_until_error(const Words& words) {
  static constexpr u64 kPiece = 1 << 20;
  static constexpr u64 kPiecesMax = 1024;
  const std::string zeros(kPiece, '\0');
  for (u64 piece = 0; piece < kPiecesMax; ++piece) {
    const auto wrote = volume_->write(handles_.at(words.at(1)), piece * kPiece, bytes_of(zeros));
    if (!wrote) return outcome_of(wrote);
  }
  return {"0"};
}

}  // namespace latchkey::tests
