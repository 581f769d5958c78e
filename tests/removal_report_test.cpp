// Goal: a removal's report says to people and to programs what it holds, and the same to both.
// Method: one report of each kind is written by hand and compared with the text and the members
// that it must give; a name that would draw on a terminal does not.

#include "cli/removal_report.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace latchkey::tests {
namespace {

using cli::describe_removal;
using cli::format_duration;
using cli::removal_table;
using nlohmann::json;

volume::RemovalReport busy_report() {
  volume::RemovalReport report;
  report.key_id.bytes.fill(std::byte{0xab});
  report.mode = keymgr::RemovalMode::sealed;
  report.state = keymgr::KeyState::incompletely_removed;
  report.files_busy = true;
  report.holders = {{"/vault/a\033[2J", 1000, volume::HandleId{7}, 8192, 1'700'000'000'000'000'000},
                    {"/vault", 0, volume::HandleId{12}, 0, 1'700'000'001'000'000'000}};
  report.bytes_flushed = 128 * kKiB;
  report.own_keys = 3;
  report.own_key_bytes = 2 * kKiB;
  report.phases = {{"door", 850}, {"flush", 12'540'000}, {"commit", 2'000'000'000}};
  return report;
}

TEST(RemovalReport, people_get_a_table) {
  EXPECT_EQ(removal_table(busy_report()),
            "key       abababababababababababababababab\n"
            "mode      sealed\n"
            "state     incompletely-removed\n"
            "flags     FILES_BUSY\n"
            "flushed   128 KiB\n"
            "lost      nothing\n"
            "kept      3 keys of extents in 2 KiB of locked memory\n"
            "time      door 850 ns, flush 12.5 ms, commit 2.00 s\n"
            "\n"
            "     uid  handle     dirty  since                 open\n"
            "    1000       7     8 KiB  2023-11-14T22:13:20Z  /vault/a\\x1b[2J\n"
            "       0      12       0 B  2023-11-14T22:13:21Z  /vault\n");
}

TEST(RemovalReport, people_see_which_program_is_inside_where_that_is_known) {
  volume::RemovalReport report = busy_report();
  report.holders[0].pid = 4711;
  report.holders[0].command = "vi\033";
  EXPECT_EQ(cli::holders_table(report.holders),
            "\n"
            "     uid      pid command           handle     dirty  since                 open\n"
            "    1000     4711 vi\\x1b                 7     8 KiB  2023-11-14T22:13:20Z  "
            "/vault/a\\x1b[2J\n"
            "       0        0                       12       0 B  2023-11-14T22:13:21Z  /vault\n");
  EXPECT_EQ(cli::holders_table({}), "");
}

TEST(RemovalReport, programs_get_the_same) {
  const json out = describe_removal(busy_report());
  EXPECT_EQ(out["identifier"], "abababababababababababababababab");
  EXPECT_EQ(out["mode"], "sealed");
  EXPECT_EQ(out["state"], "incompletely-removed");
  EXPECT_EQ(out["files_busy"], true);
  EXPECT_EQ(out["other_users"], false);
  EXPECT_EQ(out["flags"], json({"files-busy"}));
  EXPECT_EQ(out["bytes_flushed"], 131072);
  EXPECT_EQ(out["own_keys"], 3);
  EXPECT_EQ(out["own_key_bytes"], 2048);
  EXPECT_EQ(out["dry_run"], false);
  EXPECT_EQ(out["holders"][0], json({{"path", "/vault/a\033[2J"},
                                     {"uid", 1000},
                                     {"pid", 0},
                                     {"command", ""},
                                     {"handle", 7},
                                     {"dirty_bytes", 8192},
                                     {"since", "2023-11-14T22:13:20Z"}}));
  EXPECT_EQ(out["phases"][1], json({{"name", "flush"}, {"ns", 12'540'000}}));
  EXPECT_EQ(out["lost"], json::array());
  EXPECT_FALSE(out.contains("error"));
}

TEST(RemovalReport, what_is_lost_is_named) {
  volume::RemovalReport report;
  report.mode = keymgr::RemovalMode::hard;
  report.other_users = true;
  report.bytes_lost = 12 * kKiB;
  report.files_lost = 2;
  report.files_cached = 3;
  report.lost = {{{256, 300}, "/vault/a", 8192}, {{257, 301}, "", 4096}};
  const std::string text = removal_table(report);
  EXPECT_NE(text.find("lost      12 KiB of 2 files\n"), std::string::npos) << text;
  EXPECT_NE(text.find("cached    3 files of which the kernel kept pages"), std::string::npos);
  EXPECT_NE(text.find("flags     OTHER_USERS\n"), std::string::npos) << text;
  EXPECT_NE(text.find("     8192  /vault/a\n"), std::string::npos) << text;
  EXPECT_NE(text.find("     4096  subvolume 257, inode 301\n"), std::string::npos) << text;
  EXPECT_EQ(text.find("locked memory"), std::string::npos) << text;
  const json out = describe_removal(report);
  EXPECT_EQ(out["lost"][1],
            json({{"path", ""}, {"inode", 301}, {"subvolume", 257}, {"bytes", 4096}}));
  EXPECT_EQ(out["files_lost"], 2);
  EXPECT_EQ(out["files_cached"], 3);
  EXPECT_EQ(out["bytes_lost"], 12288);
}

TEST(RemovalReport, what_was_refused_says_why_and_who_is_inside) {
  volume::RemovalReport report = busy_report();
  report.mode = keymgr::RemovalMode::safe;
  report.dry_run = true;
  const Error busy{Errc::busy, "files or directories of the key are open"};
  const std::string text = removal_table(report, busy);
  EXPECT_TRUE(
      text.starts_with("refused   files or directories of the key are open (busy) [EBUSY]\n"))
      << text;
  EXPECT_NE(text.find("mode      safe, a dry run: nothing was changed\n"), std::string::npos);
  EXPECT_EQ(text.find("state "), std::string::npos) << text;
  EXPECT_NE(text.find("/vault\n"), std::string::npos) << text;
  const json out = describe_removal(report, busy);
  EXPECT_EQ(out["error"], "busy");
  EXPECT_EQ(out["message"], "files or directories of the key are open (busy) [EBUSY]");
  EXPECT_EQ(out["holders"].size(), 2U);
}

TEST(RemovalReport, durations_have_three_digits) {
  EXPECT_EQ(format_duration(0), "0 ns");
  EXPECT_EQ(format_duration(999), "999 ns");
  EXPECT_EQ(format_duration(1000), "1.00 us");
  EXPECT_EQ(format_duration(99'940), "99.9 us");
  EXPECT_EQ(format_duration(99'960), "100 us");
  EXPECT_EQ(format_duration(999'600), "1.00 ms");
  EXPECT_EQ(format_duration(4'000'000'000'000), "4000 s");
}

}  // namespace
}  // namespace latchkey::tests
