// Goal: docs/removal.md's table of transitions is the whole of it and is what the volume does:
// every state of a key, every mode, and what can come in between while a removal prepares. Method:
// each pair is done to a volume on a device that fails on demand and to the model (tests/support
// /key_life.h); the table is printed from what came out, and the page must have it word by word.
// LATCHKEY_WRITE_DOCS=1 writes the page anew.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <sstream>

#include "tests/support/key_life.h"

namespace latchkey::tests {
namespace {

using keymgr::RemovalMode;
using Verb = KeyStep::Verb;
using Steps = std::vector<KeyStep>;

constexpr u32 kUser = 1001, kOther = 1002;

struct Start {
  std::string_view name;
  Steps steps;
  u32 uid = kUser;  // who removes
};

// Of key 0: who works with /0/0 has handle 0, with /0/1 handle 1.
const KeyStep kAdd{.verb = Verb::add, .uid = kUser};
const KeyStep kOtherAdds{.verb = Verb::add, .uid = kOther};
const KeyStep kCreate{.verb = Verb::create, .uid = kUser};
const KeyStep kWrite{.verb = Verb::write};
const KeyStep kFsync{.verb = Verb::fsync};
const KeyStep kClose{.verb = Verb::close};
const KeyStep kCreateSecond{.verb = Verb::create, .uid = kUser, .slot = 1, .name = 1};
const KeyStep kWriteSecond{.verb = Verb::write, .slot = 1};
const KeyStep kCloseSecond{.verb = Verb::close, .slot = 1};
constexpr KeyStep removal(RemovalMode mode) {
  return {.verb = Verb::remove, .uid = kUser, .mode = mode};
}

Steps open_file(Steps more) {
  Steps steps{kAdd, kCreate, kWrite, kFsync};
  steps.insert(steps.end(), more.begin(), more.end());
  return steps;
}

const std::vector<Start>& starts() {
  using enum RemovalMode;
  static const std::vector<Start> all = {
      {"absent", {}},
      {"suspended, a file open", open_file({removal(suspend)})},
      {"present, nobody inside", open_file({kClose})},
      {"present, nobody inside, dirty", open_file({kWrite, kClose})},
      {"present, a file open", open_file({})},
      {"present, a file open and dirty", open_file({kWrite})},
      {"present, a file open, another dirty",
       open_file({kCreateSecond, kWriteSecond, kCloseSecond})},
      {"present, others claim it, too", open_file({kWrite, kOtherAdds})},
      {"present, only others claim it", open_file({kOtherAdds, removal(soft)})},
      {"present again, a file open since before", open_file({removal(deny), kAdd})},
      {"leaving", open_file({removal(soft)})},
      {"leaving, the file dirty", open_file({removal(soft), kWrite})},
      {"leaving, by one who had no claim", open_file({removal(soft)}), kOther},
      {"sealed", open_file({removal(sealed)})},
      {"sealed, the file dirty", open_file({removal(sealed), kWrite})},
      {"absent, a file still open", open_file({removal(deny)})},
  };
  return all;
}

std::string word_for(const KeyModel::Key& key) {
  if (key.suspended) return "suspended";
  if (key.state == ModelState::absent) return "absent";
  if (key.state == ModelState::present) return "present";
  return key.sealed ? "sealed" : "leaving";
}

std::string word_for(Errc error) {
  switch (error) {
    case Errc::no_key:
      return "ENOKEY";
    case Errc::busy:
      return "EBUSY";
    case Errc::io:
      return "EIO";
    case Errc::canceled:
      return "ECANCELED";
    case Errc::permission:
      return "EACCES";
    default:
      return name_of(error);
  }
}

struct Cell {
  std::string text;   // of the table; empty: nothing could come in between
  std::string wrong;  // what differs from the model
};

Cell try_removal(const Start& start, const KeyStep& step) {
  KeyLife life;
  for (const KeyStep& before : start.steps)
    if (std::string wrong = life.step(before); !wrong.empty())
      return {"?", "before: " + to_text(before) + ": " + wrong};
  const KeyModel::Key before = life.model().key(0);
  // Whatever the call answers: what comes in between needs a write of the removal.
  if (step.meanwhile != Meanwhile::nothing && life.model().would_flush(0, step.mode) != 1)
    return {};
  Cell cell;
  cell.wrong = life.step(step);
  if (!cell.wrong.empty()) return cell;
  const KeyModel::Key& after = life.model().key(0);
  const KeyModel::Removed& removed = life.removed();
  if (removed.error != Errc{})
    cell.text = word_for(removed.error);
  else
    cell.text = removed.other_users ? "claim gone" : word_for(after);
  if (removed.lost != 0) cell.text += fmt::format(", {} lost", removed.lost);
  if (removed.error != Errc{} && removed.error != Errc::canceled && !(after == before))
    cell.wrong = "refused, and yet something changed";
  // What it is now with the handles, the same after the key's return, and all of it at the end.
  const KeyStep read{.verb = Verb::read};
  for (const KeyStep& next : {read, kWrite, kFsync, kAdd, read, kWrite, kFsync, read}) {
    if (!cell.wrong.empty()) break;
    cell.wrong = life.step(next);
    if (!cell.wrong.empty()) cell.wrong = "afterwards, " + to_text(next) + ": " + cell.wrong;
  }
  if (cell.wrong.empty()) cell.wrong = life.audit();
  return cell;
}

std::string table(bool all_users, Meanwhile meanwhile, u32& cells) {
  std::string text = "| the key is |";
  std::string line = "| --- |";
  for (const keymgr::RemovalRow& row : keymgr::removal_rows()) {
    text += fmt::format(" {} |", row.name);
    line += " --- |";
  }
  text += "\n" + line + "\n";
  for (const Start& start : starts()) {
    std::string cells_text;
    bool any = false;
    for (const keymgr::RemovalRow& row : keymgr::removal_rows()) {
      const Cell cell = try_removal(start, {.verb = Verb::remove,
                                            .uid = all_users ? 0 : start.uid,
                                            .mode = row.mode,
                                            .all_users = all_users,
                                            .meanwhile = meanwhile});
      EXPECT_EQ(cell.wrong, "") << start.name << ", " << row.name
                                << (all_users ? ", all users" : "") << ", in between "
                                << static_cast<int>(meanwhile);
      cells_text += fmt::format(" {} |", cell.text);
      any |= !cell.text.empty();
      ++cells;
    }
    if (any) text += fmt::format("| {} |{}\n", start.name, cells_text);
  }
  return text + "\n";
}

std::string section() {
  u32 cells = 0;
  std::string text =
      "## Transitions\n\n"
      "What `remove` by a user who has a claim makes of a key. *leaving* is incompletely removed "
      "with the secret in\nmemory, *sealed* without it; under both the files that were open work "
      "as "
      "before. *absent* cuts off the handles that\nstay open, *suspended* lets them wait. *claim "
      "gone*: the caller's claim went, and nothing else. An error changed nothing.\n*n lost*: so "
      "many pages were dropped, and reported.\n\n";
  text += table(false, Meanwhile::nothing, cells);
  text += "By root, with `--all-users`:\n\n" + table(true, Meanwhile::nothing, cells);
  text += "Where the removal writes something out, and that fails:\n\n" +
          table(false, Meanwhile::write_error, cells);
  text += "And where the caller itself adds the key meanwhile:\n\n" +
          table(false, Meanwhile::own_add, cells);
  text += "And where another user adds it:\n\n" + table(false, Meanwhile::other_add, cells);
  text += "And where another user adds it while root removes the claims of all users:\n\n" +
          table(true, Meanwhile::other_add, cells);
  text += fmt::format(
      "Each of the {} cells is tried by `removal_transitions_test`, on a volume and on a model "
      "that "
      "knows neither disk nor cipher\n(tests/support/key_model.h), with what the handles get "
      "afterwards and once the key is back; the test prints this section.\n",
      cells);
  text.pop_back();
  return text;
}

std::string read_file(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

TEST(RemovalTransitions, are_those_of_the_page) {
  const std::string path = LATCHKEY_SOURCE_DIR "/docs/removal.md";
  const std::string wanted = section();
  std::string page = read_file(path);
  const std::size_t begin = page.find("## Transitions\n");
  ASSERT_NE(begin, std::string::npos) << path << " has no section \"Transitions\"";
  std::size_t end = page.find("\n## ", begin + 1);
  if (end == std::string::npos) end = page.size();
  while (end > begin && page[end - 1] == '\n') --end;
  if (std::getenv("LATCHKEY_WRITE_DOCS") != nullptr) {
    page.replace(begin, end - begin, wanted);
    std::ofstream(path) << page;
    return;
  }
  EXPECT_EQ(page.substr(begin, end - begin), wanted)
      << "LATCHKEY_WRITE_DOCS=1 writes the section anew";
}

}  // namespace
}  // namespace latchkey::tests
