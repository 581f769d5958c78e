// Goal: one request that could not be taken from the kernel ends no mount: what passes is gone on
// with, what may pass is tried for half a minute, an unmount ends the thread. Method: the answers
// of the kernel and of libfuse in a row.

#include "mount/receive_errors.h"

#include <gtest/gtest.h>

#include <cerrno>

namespace latchkey::mount {
namespace {

using Then = ReceiveErrors::Then;

TEST(ReceiveErrors, an_unmount_ends_the_thread) {
  EXPECT_EQ(ReceiveErrors().after(0), Then::end);
  EXPECT_EQ(ReceiveErrors().after(-ENODEV), Then::end);
}

TEST(ReceiveErrors, a_signal_or_a_request_taken_back_is_no_error_however_often) {
  ReceiveErrors errors;
  for (u32 i = 0; i < 3 * ReceiveErrors::kInARowMax; ++i)
    for (const int passing : {EINTR, EAGAIN, ENOENT})
      EXPECT_EQ(errors.after(-passing), Then::go_on);
}

TEST(ReceiveErrors, what_may_pass_is_tried_again_until_it_is_seen_not_to) {
  ReceiveErrors errors;
  for (u32 round = 0; round < 3; ++round) {
    for (u32 i = 1; i < ReceiveErrors::kInARowMax; ++i) {
      EXPECT_EQ(errors.after(i % 2 == 0 ? -ENOMEM : -EIO), Then::pause);
      EXPECT_EQ(errors.after(-EINTR), Then::go_on);
    }
    errors.received();
  }
  for (u32 i = 1; i < ReceiveErrors::kInARowMax; ++i) EXPECT_EQ(errors.after(-ENOMEM), Then::pause);
  EXPECT_EQ(errors.after(-ENOMEM), Then::end);
}

}  // namespace
}  // namespace latchkey::mount
