#include "tests/mounted/mount_world.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <set>
#include <sstream>
#include <thread>

#include "base/check.h"

namespace latchkey::tests {
namespace {

constexpr u64 kStoreBytes = 64 * kMiB;
constexpr u32 kClaimers = 4;
const std::set<std::string> kKeyVerbs = {"add", "remove", "remove_all", "status", "raw"};
const std::set<std::string> kKeepers = {"hold", "map", "execute", "inherit", "send", "register"};

u32 uid_of(const std::string& user) {
  if (user == "root") return 0;
  LK_CHECK(user.size() == 1 && user[0] >= 'A' && user[0] <= 'C');
  return 1001 + static_cast<u32>(user[0] - 'A');
}

std::vector<std::string> words_of(const std::string& operation) {
  std::istringstream in(operation);
  std::vector<std::string> words;
  for (std::string word; in >> word;) words.push_back(word);
  return words;
}

}  // namespace

MountWorld::MountWorld(Setting setting, KeyDoor door) : setting_(setting), door_(door) {
  make_store(kStoreBytes);
}

void MountWorld::make_store(u64 bytes) {
  actors_.clear();
  store_.reset();
  std::string options = "allow_other,caller_memory";
  if (setting_ == Setting::compat) options += ",compat=fscrypt";
  store_ = std::make_unique<MountedStore>(options, bytes);
}

Actor& MountWorld::actor(const std::string& uid) {
  auto& actor = actors_[uid];
  if (actor == nullptr)
    actor = std::make_unique<Actor>(uid_of(uid), [&]() -> Actor::Work {
      auto player = std::make_shared<Player>(store_->root(), store_->beside(""), door_);
      return [player](const std::string& operation) { return player->run(operation); };
    });
  return *actor;
}

std::string MountWorld::with_names(const std::string& operation) const {
  std::string text;
  for (const std::string& word : words_of(operation)) {
    const auto found = names_.find(word);
    text += (text.empty() ? "" : " ") + (found == names_.end() ? word : found->second);
  }
  return text;
}

Outcome MountWorld::run(const std::string& uid, const std::string& operation) {
  const std::string text = with_names(operation);
  const Words words = words_of(text);
  if (kKeyVerbs.contains(words.at(0)) || kKeepers.contains(words[0])) wait_for_closes();
  Outcome outcome = done_by(uid, words, text);
  note_handles(words);
  return outcome;
}

Outcome MountWorld::done_by(const std::string& uid, const Words& words, const std::string& text) {
  const std::string& verb = words.at(0);
  if (verb == "reopen") return reopen();
  if (verb == "add_until_error") return add_until_error(uid, words, text);
  if (verb == "status_elsewhere") return status_elsewhere(uid, text);
  if (verb == "race_claims") return race_claims(words);
  if (verb == "race_told" && words.at(1) == "adds")
    return {"0", "failed=" + std::to_string(failed_adds_)};
  if (verb == "race_users") return actor(uid).ask(text + " " + std::to_string(claims_));
  if (verb == "small_volume") {
    make_store(32 * kMiB);
    return {"0"};
  }
  if (verb == "hold") owners_[words.at(1)] = uid;
  if (verb == "link_handle") {  // of another process
    const Outcome where = actor(owners_.at(words.at(1))).ask("where " + words[1]);
    return actor(uid).ask("link_of " + where.detail + " " + words.at(2));
  }
  return actor(uid).ask(text);
}

Outcome MountWorld::reopen() {
  actors_.clear();
  store_->umount();
  store_->mount();
  return {"0"};
}

// PREFIX.first and PREFIX.last were added, PREFIX.next was not.
Outcome MountWorld::add_until_error(const std::string& uid, const Words& words,
                                    const std::string& text) {
  Outcome outcome = actor(uid).ask(text);
  const auto added = std::stoul(outcome.detail.substr(outcome.detail.find('=') + 1));
  const std::string& prefix = words.at(1);
  names_[prefix + ".first"] = prefix + "0";
  names_[prefix + ".last"] = prefix + std::to_string(added - 1);
  names_[prefix + ".next"] = prefix + std::to_string(added);
  return outcome;
}

Outcome MountWorld::status_elsewhere(const std::string& uid, const std::string& text) {
  const MountedStore other("allow_other,caller_memory", kStoreBytes);
  return actor(uid).ask(text + " " + other.root());
}

// Each process is a user who knows what it has claimed; one claim was there before.
Outcome MountWorld::race_claims(const Words& words) {
  std::array<std::unique_ptr<Actor>, kClaimers> claimers;
  for (u32 i = 0; i < kClaimers; ++i) {
    claimers[i] = std::make_unique<Actor>(2001 + i, [&]() -> Actor::Work {
      auto player = std::make_shared<Player>(store_->root(), store_->beside(""), door_);
      return [player](const std::string& operation) { return player->run(operation); };
    });
    claimers[i]->tell("claim_at_random " + words.at(1) + " seed=" + std::to_string(i));
  }
  failed_adds_ = 0;
  claims_ = 1;
  for (const auto& claimer : claimers) {
    const Outcome outcome = claimer->answer();
    failed_adds_ += std::stoul(outcome.result);
    if (!outcome.detail.empty()) ++claims_;
  }
  return {"0"};
}

void MountWorld::wait_for_closes() {
  static constexpr std::chrono::seconds kLong{20};
  if (!std::exchange(some_may_close_, false)) return;
  const auto end = std::chrono::steady_clock::now() + kLong;
  while (store_->handles() > inside_ || store_->requests() != 0) {
    LK_CHECK_MSG(std::chrono::steady_clock::now() < end, "the kernel tells of a close");
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

void MountWorld::note_handles(const Words& words) {
  const std::string& verb = words.at(0);
  if (kKeepers.contains(verb)) {
    const std::size_t inside = store_->handles();
    kept_[words.at(1)] += inside - inside_;
    inside_ = inside;
  } else if (verb == "close" || verb == "end") {
    inside_ -= std::exchange(kept_[words.at(1)], 0);
    some_may_close_ = true;
  } else if (!kKeyVerbs.contains(verb)) {
    some_may_close_ = true;
  }
}

}  // namespace latchkey::tests
