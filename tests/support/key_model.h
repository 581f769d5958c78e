#pragma once
// What the life of keys is, without a disk, a cipher or a second thread: claims, former claims,
// states, the eight modes as rows, who is inside, what is dirty, flushed, lost, and what a crash
// may leave. Files have one page, whose content is the number of the write that made it (0: none
// yet); the store does nothing by itself in the background.
//
// Written from the design and not from the code: it is what the volume is compared with.

#include <array>
#include <optional>
#include <set>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "keymgr/removal_mode.h"

namespace latchkey::tests {

inline constexpr u32 kModelKeys = 3;
inline constexpr u32 kModelFiles = 6;  // names; two under each key
inline constexpr u32 kModelHandles = 6;

// A mode, as seen from outside by one caller at a time.
struct ModelRow {
  keymgr::RemovalMode mode;
  std::string_view name;
  bool refuses;      // where somebody is inside
  bool claim_first;  // what comes after the claim's end cannot go back
  enum class Inside : u8 { work, cut_off, wait } inside;
  bool secret_stays;                                // while somebody is inside
  enum class Dirty : u8 { idle, all, lost } dirty;  // which pages it writes out
};
const ModelRow& model_row(keymgr::RemovalMode mode);

enum class ModelState : u8 { absent, present, leaving };

// What comes in between while a removal writes out; where it writes nothing, nothing does.
enum class Meanwhile : u8 { nothing, write_error, own_add, other_add };
inline constexpr u32 kOtherUser = 1009;  // who never does anything else

class KeyModel {
 public:
  struct Key {
    ModelState state = ModelState::absent;
    bool sealed = false;  // leaving, and the secret is gone
    bool suspended = false;
    std::set<u32> claims, former;  // former: until absent, but for a suspended key
    bool secret() const { return state != ModelState::absent && !sealed; }
    bool operator==(const Key&) const = default;
  };
  struct Removed {
    Errc error{};
    bool other_users = false;  // only the caller's claim went
    bool files_busy = false;
    u32 holders = 0;
    u32 flushed = 0, lost = 0;  // pages
  };
  // Of a name: what is there, or what a crash may leave there. None: no file.
  using Content = std::optional<u32>;

  static u32 key_of(u32 name) { return name / 2; }

  Errc add(u32 uid, u32 key);
  Removed remove(u32 uid, u32 key, bool all_users, keymgr::RemovalMode mode,
                 Meanwhile meanwhile = Meanwhile::nothing);
  // Whether a removal that began now would write anything out.
  u32 would_flush(u32 key, keymgr::RemovalMode mode) const;
  Errc open(u32 slot, u32 name, bool create);
  Errc unlink(u32 name);
  Errc write(u32 slot, u32 content);
  Errc read(u32 slot, u32& content) const;
  Errc fsync(u32 slot);
  Errc close(u32 slot);
  void sync();
  // The power goes, and the store is opened again. `there`: what each name has now.
  void crash(const std::array<Content, kModelFiles>& there);
  // Of a call that the power cut off: what it may have done is possible too.
  void or_else(const KeyModel& other);

  const Key& key(u32 index) const { return keys_[index]; }
  bool is_open(u32 slot) const { return handles_[slot].has_value(); }
  u32 file_key(u32 slot) const { return files_[handles_[slot]->file].key; }
  bool would_wait(u32 slot) const { return keys_[file_key(slot)].suspended; }
  u32 holders(u32 key) const;
  const std::set<Content>& after_crash(u32 name) const { return names_[name].after_crash; }
  Content content(u32 name) const;

 private:
  struct File {
    u32 key = 0;
    u32 name = 0;
    bool named = true;
    u32 stored = 0;
    std::optional<u32> dirty = {};
    u32 losses = 0, errors = 0;  // as long as somebody remembers the file
    bool error_untold = false;
  };
  struct Handle {
    std::size_t file = 0;
    u32 losses = 0, errors_told = 0;
    bool loss_told = false;
  };
  struct Name {
    std::optional<std::size_t> file;
    std::set<Content> after_crash{std::nullopt};
  };

  bool is_open_file(std::size_t file) const;
  Errc ready(u32 slot) const;
  Errc tell(Handle& handle);
  bool is_dirty(std::size_t file, u32 key, ModelRow::Dirty which) const;
  u32 flush(u32 key, ModelRow::Dirty which);
  void flush(File& file);
  u32 lose(u32 key, ModelRow::Dirty which);
  void drop_claims(Key& key, u32 uid, bool all_users);
  void leave_if_empty(u32 key);
  void become_absent(Key& key);
  void forget_idle();

  std::array<Key, kModelKeys> keys_;
  std::array<Name, kModelFiles> names_;
  std::array<std::optional<Handle>, kModelHandles> handles_;
  std::vector<File> files_;  // every one that ever was
};

}  // namespace latchkey::tests
