#include "tests/support/fake_kernel.h"

#include <algorithm>
#include <cstring>
#include <thread>

#include "base/check.h"

namespace latchkey::tests {

using volume::HandleId;
using volume::IoFlags;

void FakeKernel::fill(Content& content, u64 value) {
  for (u64 at = 0; at < content.size(); at += sizeof value)
    std::memcpy(content.data() + at, &value, sizeof value);
}

u32 FakeKernel::add_file(volume::InodeId inode) {
  Lock lock(mutex_);
  files_.push_back({.inode = inode, .handle = {}, .pages = {}, .acknowledged = {}});
  return static_cast<u32>(files_.size() - 1);
}

void FakeKernel::open(u32 file) {
  volume::InodeId inode;
  {
    Lock lock(mutex_);
    inode = files_[file].inode;
  }
  const auto opened = volume_->open({1000}, inode, {.read = true, .write = true}, "file");
  LK_CHECK_MSG(opened.has_value(), "the fake kernel cannot open a file");
  Lock lock(mutex_);
  files_[file].handle = *opened;
}

HandleId FakeKernel::handle(u32 file) const {
  Lock lock(mutex_);
  return *files_[file].handle;
}

// As the kernel does at the last munmap, then the mount while the key is leaving.
FakeKernel::Released FakeKernel::release(u32 file) {
  Released released;
  const HandleId id = handle(file);
  std::vector<u64> pages;
  {
    Lock lock(mutex_);
    for (const auto& [page, state] : files_[file].pages) pages.push_back(page);
  }
  for (const u64 page : pages) (void)write_back(file, page);
  released.leaving = volume_->key_is_leaving(id);
  if (released.leaving) drop_file(file, 0);
  {
    Lock lock(mutex_);
    files_[file].handle.reset();
  }
  const auto closed = volume_->close_handle(id);
  if (!closed) released.error = closed.error().code;
  return released;
}

FakeKernel::Page& FakeKernel::lock_page(u32 file, u64 page) {
  while (files_[file].pages[page].locked) changed_.wait(mutex_);
  Page& locked = files_[file].pages[page];
  locked.locked = true;
  return locked;
}

void FakeKernel::unlock_page(u32 file, u64 page) {
  const auto it = files_[file].pages.find(page);
  it->second.locked = false;
  if (!it->second.there) files_[file].pages.erase(it);
  changed_.notify_all();
}

// The page is locked; mutex_ is let go for the call.
Errc FakeKernel::read_in(u32 file, u64 page) {
  if (!files_[file].handle) return Errc::bad_handle;  // a mapping keeps its file open
  if (files_[file].pages[page].there) return {};
  const HandleId id = *files_[file].handle;
  Content content{};
  mutex_.unlock();
  const auto read = volume_->read(id, page * kPageBytes, content, {.wait = false});
  mutex_.lock();
  if (!read) return read.error().code;
  Page& now = files_[file].pages[page];
  std::memcpy(&now.value, content.data(), sizeof now.value);
  now.there = true;
  return {};
}

Errc FakeKernel::store(u32 file, u64 page) {
  Lock lock(mutex_);
  lock_page(file, page);
  const Errc met = read_in(file, page);
  if (met == Errc{}) {
    Page& now = files_[file].pages[page];
    now.value = files_[file].acknowledged[page] = next_value_++;
    now.dirty = true;
  }
  unlock_page(file, page);
  return met;
}

Errc FakeKernel::look(u32 file, u64 page) {
  Lock lock(mutex_);
  lock_page(file, page);
  const Errc met = read_in(file, page);
  unlock_page(file, page);
  return met;
}

Errc FakeKernel::write(u32 file, u64 page) {
  Lock lock(mutex_);
  lock_page(file, page);
  if (!files_[file].handle) return unlock_page(file, page), Errc::bad_handle;
  const HandleId id = *files_[file].handle;
  const u64 value = next_value_++;
  Content content;
  fill(content, value);
  mutex_.unlock();
  const auto wrote = volume_->write(id, page * kPageBytes, content, {.wait = false});
  mutex_.lock();
  if (wrote) {
    Page& now = files_[file].pages[page];
    now.value = files_[file].acknowledged[page] = value;
    now.there = true;
    now.dirty = false;  // the volume has all of it, so a loss can be told from none
  }
  unlock_page(file, page);
  return wrote ? Errc{} : wrote.error().code;
}

// Of a locked page: clean afterwards, whatever the volume said, as in the kernel.
Errc FakeKernel::write_down(u32 file, u64 page) {
  Page& now = files_[file].pages[page];
  if (!now.dirty) return {};
  now.dirty = false;
  const HandleId id = *files_[file].handle;
  Content content;
  fill(content, now.value);
  mutex_.unlock();
  const auto wrote =
      volume_->write(id, page * kPageBytes, content, {.wait = false, .written_back = true});
  mutex_.lock();
  return wrote ? Errc{} : wrote.error().code;
}

Errc FakeKernel::write_back(u32 file, u64 page) {
  Lock lock(mutex_);
  lock_page(file, page);
  const Errc met = write_down(file, page);
  unlock_page(file, page);
  return met;
}

// Answers how many pages were dropped so far, in all files.
u64 FakeKernel::drop_file(u32 file, u64 dropped) {
  for (u64 next = 0;;) {
    {
      Lock lock(mutex_);
      const auto it = files_[file].pages.lower_bound(next);
      if (it == files_[file].pages.end()) return dropped;
      const u64 page = it->first;
      next = page + 1;
      lock_page(file, page);
      (void)write_down(file, page);
      files_[file].pages[page].there = false;
      unlock_page(file, page);
    }
    ++dropped;
    if (while_dropping) while_dropping(dropped);
  }
}

void FakeKernel::drop_now(Which which) {
  if (while_dropping) while_dropping(0);
  u64 dropped = 0;
  std::vector<u32> chosen;
  {
    Lock lock(mutex_);
    for (u32 file = 0; file < files_.size(); ++file)
      if (which == Which::all || !files_[file].handle) chosen.push_back(file);
  }
  for (const u32 file : chosen) dropped = drop_file(file, dropped);
}

u64 FakeKernel::drop_pages(const crypto::KeyId& /*key*/, Which which) {
  {
    Lock lock(mutex_);
    drops_.push_back(which);
  }
  std::thread([&] { drop_now(which); }).join();
  return 0;
}

void FakeKernel::try_again(const crypto::KeyId& /*key*/) {
  Lock lock(mutex_);
  ++tries_;
  changed_.notify_all();
}

u64 FakeKernel::tries() const {
  Lock lock(mutex_);
  return tries_;
}

void FakeKernel::wait_for_tries(u64 seen) {
  Lock lock(mutex_);
  while (tries_ == seen && !no_waiting_) changed_.wait(mutex_);
}

void FakeKernel::stop_waiting() {
  Lock lock(mutex_);
  no_waiting_ = true;
  changed_.notify_all();
}

std::vector<FakeKernel::Which> FakeKernel::drops() const {
  Lock lock(mutex_);
  return drops_;
}

bool FakeKernel::cached(u32 file, u64 page) const {
  Lock lock(mutex_);
  return files_[file].pages.contains(page);
}

u64 FakeKernel::cached_pages(u32 file) const {
  Lock lock(mutex_);
  return files_[file].pages.size();
}

std::vector<u64> FakeKernel::lost_pages(u32 file) {
  Lock lock(mutex_);
  const auto opened = volume_->open({1000}, files_[file].inode, {}, "lost");
  LK_CHECK_MSG(opened.has_value(), "the fake kernel cannot open a file again");
  std::vector<u64> lost;
  for (auto& [page, value] : files_[file].acknowledged) {
    Content content{};
    const auto read = volume_->read(*opened, page * kPageBytes, content);
    LK_CHECK_MSG(read.has_value(), "the fake kernel cannot read a page again");
    u64 found = 0;
    std::memcpy(&found, content.data(), sizeof found);
    if (found == value) continue;
    lost.push_back(page);
    value = found;
  }
  LK_CHECK(volume_->close_handle(*opened).has_value());
  return lost;
}

}  // namespace latchkey::tests
