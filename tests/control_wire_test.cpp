// Goal: what the daemon says is what its client hears, field by field, and what had no room is
// counted. Method: answers with a value of its own in each field, through the writer and back.

#include <gtest/gtest.h>

#include "mount/wire.h"

namespace latchkey::mount {
namespace {

using keymgr::KeyState;
using keymgr::RemovalMode;

crypto::KeyId id_of(u8 first) {
  crypto::KeyId id;
  id.bytes.fill(std::byte{first});
  return id;
}

volume::Holder holder(std::string path) {
  volume::Holder one;
  one.uid = 1000;
  one.pid = 4711;
  one.command = "vi";
  one.handle = volume::HandleId{9};
  one.path = std::move(path);
  one.dirty_bytes = 8192;
  one.since_ns = 1'700'000'000'000'000'000;
  return one;
}

volume::RemovalReport removal() {
  volume::RemovalReport report;
  report.key_id = id_of(1);
  report.mode = RemovalMode::sealed;
  report.state = KeyState::incompletely_removed;
  report.files_busy = true;
  report.other_users = true;
  report.dry_run = true;
  report.holders = {holder("/vault/a"), holder("")};
  report.bytes_flushed = 1ULL << 40;
  report.bytes_lost = 12345;
  report.files_lost = 3;
  report.lost = {{{256, 300}, "/vault/b", 4096}, {{257, 301}, "", 1}};
  report.files_cached = 5;
  report.own_keys = 77;
  report.own_key_bytes = 1 << 20;
  report.phases = {{"door", 2480}, {"flush", 12}};
  return report;
}

// As the client puts it together.
Answer heard(AnswerWriter& writer, Done done = {}) {
  Answer answer;
  bool last = false;
  for (const auto& message : writer.finish(std::move(done))) {
    EXPECT_FALSE(last) << "the last part is the last message";
    for (Bytes rest = message; !rest.empty();) {
      const auto header = load_disk<WireHeader>(rest);
      const std::size_t size = sizeof(WireHeader) + header.length.get();
      const auto decoded = decode_part(rest.first(size), answer);
      EXPECT_TRUE(decoded) << decoded.error().what;
      if (!decoded) return answer;
      last = *decoded;
      rest = rest.subspan(size);
    }
  }
  EXPECT_TRUE(last);
  return answer;
}

TEST(ControlWire, a_removals_report_arrives_whole) {
  const volume::RemovalReport said = removal();
  AnswerWriter writer(1, kMiB);
  writer.add(said);
  const Answer answer = heard(writer);
  const volume::RemovalReport& got = answer.removal;
  EXPECT_EQ(got.key_id, said.key_id);
  EXPECT_EQ(got.mode, said.mode);
  EXPECT_EQ(got.state, said.state);
  EXPECT_TRUE(got.files_busy && got.other_users && got.dry_run);
  EXPECT_EQ(got.bytes_flushed, said.bytes_flushed);
  EXPECT_EQ(got.bytes_lost, said.bytes_lost);
  EXPECT_EQ(got.files_lost, said.files_lost);
  EXPECT_EQ(got.files_cached, said.files_cached);
  EXPECT_EQ(got.own_keys, said.own_keys);
  EXPECT_EQ(got.own_key_bytes, said.own_key_bytes);
  ASSERT_EQ(got.phases.size(), 2U);
  EXPECT_EQ(got.phases[1].name, "flush");
  EXPECT_EQ(got.phases[1].ns, 12U);
  ASSERT_EQ(got.lost.size(), 2U);
  EXPECT_EQ(got.lost[0].path, "/vault/b");
  EXPECT_EQ(got.lost[1].inode, (volume::InodeId{257, 301}));
  EXPECT_EQ(got.lost[0].bytes, 4096U);
  ASSERT_EQ(answer.holders.size(), 2U);
  EXPECT_EQ(answer.holders[0].path, "/vault/a");
  EXPECT_EQ(answer.holders[0].command, "vi");
  EXPECT_EQ(answer.holders[0].uid, 1000U);
  EXPECT_EQ(answer.holders[0].pid, 4711U);
  EXPECT_EQ(answer.holders[0].handle, volume::HandleId{9});
  EXPECT_EQ(answer.holders[1].dirty_bytes, 8192U);
  EXPECT_EQ(answer.holders[1].since_ns, said.holders[1].since_ns);
}

TEST(ControlWire, a_store_a_key_a_policy_and_an_error_arrive_whole) {
  StoreReport store;
  store.volume_id.fill(std::byte{3});
  store.label = "label";
  store.generation = 1;
  store.size_bytes = 2;
  store.blocks_total = 3;
  store.blocks_available = 4;
  store.dirty_bytes = 5;
  store.read_only = true;
  volume::KeyReport key;
  key.key_id = id_of(2);
  key.state = KeyState::present;
  key.added_by_self = true;
  key.user_count = 6;
  AnswerWriter writer(1, kMiB);
  writer.add(store);
  writer.add(key);
  writer.add(PolicyReport{id_of(4), true, true});
  Done done;
  done.error = Errc::busy;
  done.os_errno = 16;
  done.key_id = id_of(5);
  done.sentence = "somebody is inside";
  const Answer answer = heard(writer, done);
  EXPECT_EQ(answer.store.volume_id, store.volume_id);
  EXPECT_EQ(answer.store.label, "label");
  EXPECT_EQ(answer.store.generation, 1U);
  EXPECT_EQ(answer.store.size_bytes, 2U);
  EXPECT_EQ(answer.store.blocks_total, 3U);
  EXPECT_EQ(answer.store.blocks_available, 4U);
  EXPECT_EQ(answer.store.dirty_bytes, 5U);
  EXPECT_TRUE(answer.store.read_only);
  EXPECT_FALSE(answer.store.secret_memory);
  ASSERT_EQ(answer.keys.size(), 1U);
  EXPECT_EQ(answer.keys[0].key_id, id_of(2));
  EXPECT_EQ(answer.keys[0].state, KeyState::present);
  EXPECT_TRUE(answer.keys[0].added_by_self);
  EXPECT_EQ(answer.keys[0].user_count, 6U);
  EXPECT_EQ(answer.policy.id, id_of(4));
  EXPECT_TRUE(answer.policy.locked && answer.policy.directory);
  EXPECT_EQ(answer.done.error, Errc::busy);
  EXPECT_EQ(answer.done.os_errno, 16);
  EXPECT_EQ(answer.done.key_id, id_of(5));
  EXPECT_EQ(answer.done.sentence, "somebody is inside");
  EXPECT_EQ(answer.done.omitted, 0U);
}

TEST(ControlWire, holders_that_had_no_room_are_counted) {
  const std::vector<volume::Holder> many(1000, holder(std::string(1000, 'x')));
  AnswerWriter writer(1, 100'000);
  writer.add(many);
  const Answer answer = heard(writer);
  EXPECT_GT(answer.holders.size(), 50U);
  EXPECT_LT(answer.holders.size(), 100U);
  EXPECT_EQ(answer.holders.size() + answer.done.omitted, many.size());
}

TEST(ControlWire, more_files_than_the_field_holds_are_as_many_as_it_holds) {
  volume::RemovalReport report;
  report.files_cached = 1ULL << 33;
  AnswerWriter writer(1, kMiB);
  writer.add(report);
  EXPECT_EQ(heard(writer).removal.files_cached, 0xffffffffU);
}

}  // namespace
}  // namespace latchkey::mount
