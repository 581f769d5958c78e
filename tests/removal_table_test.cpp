// Goal: the table of docs/removal.md says what the code's rows say. Method: it is printed from the
// rows and compared, line by line, with what the page has between its marks.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "keymgr/removal_mode.h"
#include "tests/support/page_section.h"

namespace latchkey::keymgr {
namespace {

std::string_view text_of(Writers writers) {
  switch (writers) {
    case Writers::keep:
      return "go on";
    case Writers::hold:
      return "wait";
    case Writers::stop:
      return "get ENOKEY";
  }
  return "?";
}

std::string_view text_of(Dirty dirty) {
  switch (dirty) {
    case Dirty::flush_busy_later:
      return "flushed: of closed files by the call, of open ones later";
    case Dirty::flush:
      return "flushed by the call";
    case Dirty::drop:
      return "dropped and counted";
  }
  return "?";
}

std::string_view text_of(Stays stays) {
  switch (stays) {
    case Stays::master:
      return "the master";
    case Stays::own_keys:
      return "the open files' own keys";
    case Stays::nothing:
      return "nothing";
  }
  return "?";
}

std::string_view text_of(LaterIo later) {
  switch (later) {
    case LaterIo::succeeds:
      return "succeed";
    case LaterIo::no_key:
      return "ENOKEY";
    case LaterIo::waits:
      return "wait for the key";
  }
  return "?";
}

std::string table() {
  std::string text =
      "| mode | refuses when files are open | goes back if a flush fails | writers meanwhile | "
      "dirty pages | acknowledged writes | stays in memory while files are open | reads and writes "
      "of open files afterwards |\n|---|---|---|---|---|---|---|---|\n";
  for (const RemovalRow& row : removal_rows())
    text += fmt::format("| `{}` | {} | {} | {} | {} | {} | {} | {} |\n", row.name,
                        row.refuse_when_busy ? "yes, EBUSY and the holders" : "no",
                        row.claim_first ? "no: its claim goes first" : "yes, nothing has changed",
                        text_of(row.writers), text_of(row.dirty),
                        row.may_lose ? "may be lost, reported" : "never lost", text_of(row.stays),
                        text_of(row.later_io));
  return text;
}

TEST(RemovalTable, of_the_page_is_the_one_of_the_code) {
  const std::string page = LATCHKEY_SOURCE_DIR "/docs/removal.md";
  EXPECT_EQ(tests::page_section(page, "<!-- rows -->\n", "<!-- /rows -->"), table());
}

}  // namespace
}  // namespace latchkey::keymgr
