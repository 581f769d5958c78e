// Goal: the model allows what a crash may leave and nothing else, since a test that compares with a
// lenient model proves nothing. Method: each rule by name, with contents that obey it and contents
// that break it; and seeded random files against a plain vector for what they hold without a crash.

#include "tests/support/model.h"
#include "tests/support/seed.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>

namespace latchkey::tests {
namespace {

using Data = std::vector<std::byte>;

// "a3 b2": three blocks of a, two of b; "a.5": half a block. Zeros are '0'.
Data blocks(std::string_view text) {
  Data data;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == ' ') continue;
    const auto byte = text[i] == '0' ? std::byte{0} : static_cast<std::byte>(text[i]);
    const bool half = i + 1 < text.size() && text[i + 1] == '.';
    u64 count = 1;
    if (half)
      ++i;
    else if (i + 1 < text.size() && text[i + 1] >= '1' && text[i + 1] <= '9')
      count = static_cast<u64>(text[++i] - '0');
    data.insert(data.end(), half ? FileHistory::kBlock / 2 : count * FileHistory::kBlock, byte);
  }
  return data;
}

void expect_allowed(const FileHistory& file, std::vector<std::string_view> allowed) {
  for (const std::string_view text : allowed) {
    const auto wrong = file.explain(blocks(text));
    EXPECT_FALSE(wrong) << text << ": " << *wrong;
  }
}
void expect_refused(const FileHistory& file, std::vector<std::string_view> refused) {
  for (const std::string_view text : refused) EXPECT_TRUE(file.explain(blocks(text))) << text;
}

constexpr u64 kBlock = FileHistory::kBlock;

TEST(FileHistory, each_block_of_an_unacknowledged_write_is_old_or_new) {
  FileHistory file(blocks("aaaa"));
  file.write(kBlock, blocks("bb"));
  file.write(2 * kBlock, blocks("c"));
  expect_allowed(file, {"aaaa", "abca", "abba", "aaca", "abaa", "aaba"});
  expect_refused(file, {"acaa", "baaa", "abc", "abcaa", "ab0a", ""});
  file.acknowledge();
  expect_allowed(file, {"abca"});
  expect_refused(file, {"aaaa", "abba", "aaca"});
}

TEST(FileHistory, a_block_is_not_torn_inside) {
  FileHistory file(blocks("a"));
  file.write(kBlock / 2, blocks("b."));
  expect_allowed(file, {"a", "a.b."});
  expect_refused(file, {"b", "a.0."});
}

TEST(FileHistory, the_size_does_not_run_ahead_of_the_data) {
  FileHistory file(blocks("aa."));
  file.write(kBlock + kBlock / 2, blocks("b.bb."));
  expect_allowed(file, {"aa.", "aa.b.", "aa.b.b", "aa.b.bb.", "aa.b.b"});
  expect_refused(file, {"aa.0.", "aa.0.bb.", "aa.b.0b.", "aa.b.b0.", "aa.b.bbb", "a.", "aa"});
}

TEST(FileHistory, what_was_acknowledged_stays_when_the_file_grows) {
  FileHistory file(blocks("a"));
  file.write(kBlock, blocks("b"));
  file.acknowledge();
  file.write(2 * kBlock, blocks("c"));
  expect_allowed(file, {"ab", "abc"});
  expect_refused(file, {"a", "a0", "", "ab0", "a0c"});
}

TEST(FileHistory, a_truncate_is_whole_and_what_it_cut_off_does_not_come_back) {
  FileHistory file(blocks("aaa"));
  file.truncate(kBlock / 2);
  expect_allowed(file, {"aaa", "a."});
  expect_refused(file, {"aa", "a", ""});
  file.write(2 * kBlock, blocks("b"));
  expect_allowed(file, {"aaa", "a.", "a.0.0b", "a.0.0"});
  expect_refused(file, {"a0b", "a.0.ab", "aab", "aaab", "a.0.bb"});
  file.acknowledge();
  expect_allowed(file, {"a.0.0b"});
  expect_refused(file, {"aaa", "a."});
}

TEST(FileHistory, writes_before_a_truncate_may_reach_the_disk_after_it_or_never) {
  FileHistory file(blocks("aaa"));
  file.write(0, blocks("bb"));
  file.truncate(2 * kBlock);
  expect_allowed(file, {"aaa", "bba", "ba", "aa", "bb", "ab", "baa"});
  expect_refused(file, {"b", "aab"});
}

TEST(FileHistory, holes_read_as_zeros_and_a_truncate_upwards_makes_them) {
  FileHistory file(blocks("a."));
  file.truncate(3 * kBlock);
  expect_allowed(file, {"a.", "a.0.00"});
  expect_refused(file, {"a00", "a.0.0", "a.0.0a"});
  file.acknowledge();
  file.write(kBlock, blocks("b"));
  expect_allowed(file, {"a.0.00", "a.0.b0"});
  expect_refused(file, {"a.0.0b", "a.0.bb"});
}

TEST(FileHistory, it_holds_what_a_file_holds) {
  for (const u64 seed : seeds(20)) {
    std::mt19937_64 random(seed);
    FileHistory file;
    Data plain;
    for (int i = 0; i < 200; ++i) {
      const u64 dice = random() % 10;
      if (dice < 7) {
        const u64 offset = random() % (dice == 0 ? 60000 : plain.size() + 1);
        Data bytes(random() % 12000);
        for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
        file.write(offset, bytes);
        if (!bytes.empty()) plain.resize(std::max<u64>(plain.size(), offset + bytes.size()));
        std::ranges::copy(bytes,
                          plain.begin() + static_cast<std::ptrdiff_t>(bytes.empty() ? 0 : offset));
      } else if (dice < 9) {
        const u64 size = random() % 60000;
        file.truncate(size);
        plain.resize(size);
      } else {
        file.acknowledge();
      }
      ASSERT_EQ(file.latest(), plain) << "seed " << seed << ", step " << i;
      const auto wrong = file.explain(plain);
      ASSERT_FALSE(wrong) << "seed " << seed << ", step " << i << ": " << *wrong;
    }
  }
}

// --- names -------------------------------------------------------------------------------------

ModelContents tree(std::vector<std::string> directories,
                   std::vector<std::pair<std::string, std::string_view>> files) {
  ModelContents contents;
  for (const std::string& path : directories) contents[path] = std::nullopt;
  for (const auto& [path, text] : files) contents[path] = blocks(text);
  return contents;
}

TEST(Model, names_are_those_after_some_call_in_their_order) {
  Model model;
  model.mkdir("d");
  model.create("d/x");
  model.create("y");
  model.unlink("d/x");
  EXPECT_FALSE(model.compare_recovered(tree({}, {})));
  EXPECT_FALSE(model.compare_recovered(tree({"d"}, {})));
  EXPECT_FALSE(model.compare_recovered(tree({"d"}, {{"d/x", ""}})));
  EXPECT_FALSE(model.compare_recovered(tree({"d"}, {{"d/x", ""}, {"y", ""}})));
  EXPECT_FALSE(model.compare_recovered(tree({"d"}, {{"y", ""}})));
  EXPECT_TRUE(model.compare_recovered(tree({}, {{"y", ""}})));
  EXPECT_TRUE(model.compare_recovered(tree({"d", "y"}, {})));
  EXPECT_TRUE(model.compare_recovered(tree({"d"}, {{"y", ""}, {"z", ""}})));
  EXPECT_FALSE(model.compare_live(tree({"d"}, {{"y", ""}})));
  EXPECT_TRUE(model.compare_live(tree({"d"}, {{"d/x", ""}, {"y", ""}})));
}

TEST(Model, fsync_keeps_the_file_its_name_and_what_is_above_it) {
  Model model;
  model.create("first");
  model.mkdir("d");
  model.create("d/x");
  model.write("d/x", 0, blocks("a"));
  model.create("later");
  EXPECT_FALSE(model.compare_recovered(tree({}, {})));
  model.fsync("d/x");
  EXPECT_FALSE(model.compare_recovered(tree({"d"}, {{"first", ""}, {"d/x", "a"}})));
  EXPECT_FALSE(model.compare_recovered(tree({"d"}, {{"first", ""}, {"d/x", "a"}, {"later", ""}})));
  EXPECT_TRUE(model.compare_recovered(tree({"d"}, {{"first", ""}, {"d/x", ""}})));
  EXPECT_TRUE(model.compare_recovered(tree({"d"}, {{"first", ""}})));
  EXPECT_TRUE(model.compare_recovered(tree({}, {})));
}

TEST(Model, sync_keeps_everything_unlinks_too) {
  Model model;
  model.create("x");
  model.append("x", blocks("a"));
  model.append("x", blocks("b"));
  model.create("y");
  model.sync();
  model.unlink("y");
  EXPECT_FALSE(model.compare_recovered(tree({}, {{"x", "ab"}, {"y", ""}})));
  EXPECT_FALSE(model.compare_recovered(tree({}, {{"x", "ab"}})));
  EXPECT_TRUE(model.compare_recovered(tree({}, {{"x", "a"}})));
  model.sync();
  EXPECT_TRUE(model.compare_recovered(tree({}, {{"x", "ab"}, {"y", ""}})));
}

TEST(Model, a_name_that_was_made_again_is_another_file) {
  Model model;
  model.create("x");
  model.write("x", 0, blocks("aa"));
  model.sync();
  model.unlink("x");
  model.create("x");
  model.write("x", 0, blocks("b"));
  EXPECT_FALSE(model.compare_recovered(tree({}, {{"x", "aa"}})));
  EXPECT_FALSE(model.compare_recovered(tree({}, {})));
  EXPECT_FALSE(model.compare_recovered(tree({}, {{"x", ""}})));
  EXPECT_FALSE(model.compare_recovered(tree({}, {{"x", "b"}})));
  EXPECT_TRUE(model.compare_recovered(tree({}, {{"x", "ba"}})));
  EXPECT_TRUE(model.compare_recovered(tree({}, {{"x", "a"}})));
}

TEST(Model, after_adopting_what_was_recovered_it_is_durable) {
  Model model;
  model.mkdir("d");
  model.create("d/x");
  model.write("d/x", 0, blocks("ab"));
  const ModelContents recovered = tree({"d"}, {{"d/x", "a"}});
  ASSERT_FALSE(model.compare_recovered(recovered));
  model.adopt(recovered);
  EXPECT_FALSE(model.compare_live(recovered));
  EXPECT_EQ(model.size("d/x"), kBlock);
  EXPECT_EQ(model.files(), std::vector<std::string>{"d/x"});
  EXPECT_FALSE(model.is_empty("d"));
  model.truncate("d/x", 0);
  model.unlink("d/x");
  EXPECT_TRUE(model.is_empty("d"));
  EXPECT_FALSE(model.compare_recovered(recovered));
  EXPECT_TRUE(model.compare_recovered(tree({"d"}, {{"d/x", "ab"}})));
}

TEST(Model, it_reads_a_volume_through_two_functions) {
  ModelReader reader;
  reader.list = [](const std::string& path) -> Result<std::vector<ModelReader::Entry>> {
    if (path.empty()) return std::vector<ModelReader::Entry>{{"d", true}, {"x", false}};
    if (path == "d") return std::vector<ModelReader::Entry>{{"e", false}};
    return fail(Errc::not_found, "no such directory");
  };
  reader.read = [](const std::string& path) -> Result<Data> {
    return blocks(path == "d/e" ? "a" : "b");
  };
  const auto contents = read_tree(reader);
  ASSERT_TRUE(contents);
  EXPECT_EQ(*contents, tree({"d"}, {{"d/e", "a"}, {"x", "b"}}));
  reader.read = [](const std::string&) -> Result<Data> { return fail(Errc::io, "unreadable"); };
  EXPECT_EQ(read_tree(reader).error().code, Errc::io);
}

}  // namespace
}  // namespace latchkey::tests
