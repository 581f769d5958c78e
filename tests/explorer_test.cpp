// Goal: the explorer leaves no interleaving out, counts them rightly, takes two states for one only
// where they are the same, finds what only one order shows and repeats it. Method: small scenes
// whose interleavings are known numbers, with and without the merging of states; bodies with a
// planted race, deadlock and endless loop.

#include <gtest/gtest.h>

#include <set>

#include "base/mutex.h"
#include "tests/explore/explorer.h"
#include "tests/explore/state_memory.h"

namespace latchkey::tests {
namespace {

// Callers that each come to `points` places, and write down the order.
class Counting final : public Scene {
 public:
  Counting(std::vector<int> points, std::set<std::string>* orders)
      : points_(std::move(points)), orders_(orders) {
    order_.reserve(64);
  }
  std::vector<std::function<void()>> actors() override {
    std::vector<std::function<void()>> bodies;
    for (std::size_t i = 0; i < points_.size(); ++i)
      bodies.emplace_back([this, i] {
        for (int point = 0; point < points_[i]; ++point) {
          order_.push_back(static_cast<char>('a' + i));
          Explorer::running()->point();
        }
        order_.push_back(static_cast<char>('a' + i));
      });
    return bodies;
  }
  const char* end() override {
    const StateMemory::Pause pause;
    if (orders_ != nullptr) orders_->insert(std::string(order_.begin(), order_.end()));
    return nullptr;
  }

 private:
  std::vector<int> points_;
  std::set<std::string>* orders_;
  std::vector<char> order_;
};

TEST(Explorer, walks_every_interleaving_once) {
  // 4 steps of one and 3 of another and 2 of a third: 9! / (4! 3! 2!).
  for (const bool merge : {false, true}) {
    std::set<std::string> orders;
    Explorer explorer([&] { return std::make_unique<Counting>(std::vector{3, 2, 1}, &orders); },
                      {.merge = merge});
    const Explored explored = explorer.explore();
    EXPECT_TRUE(explored.whole);
    EXPECT_EQ(explored.interleavings, 1260);
    // What each wrote down differs, so no two states are one.
    EXPECT_EQ(explored.runs, 1260U);
    EXPECT_EQ(orders.size(), 1260U);
    EXPECT_EQ(explored.steps_max, 9U);
  }
}

// Callers that add to a number, and nothing tells later who came first.
class Adding final : public Scene {
 public:
  Adding(int callers, int rounds) : callers_(callers), rounds_(rounds) {}
  std::vector<std::function<void()>> actors() override {
    std::vector<std::function<void()>> bodies;
    for (int i = 0; i < callers_; ++i)
      bodies.emplace_back([this] {
        for (int round = 0; round < rounds_; ++round) {
          ++sum_;
          Explorer::running()->point();
        }
      });
    return bodies;
  }
  const char* end() override { return sum_ == callers_ * rounds_ ? nullptr : "a wrong sum"; }

 private:
  int callers_, rounds_, sum_ = 0;
};

TEST(Explorer, counts_interleavings_that_it_does_not_walk) {
  if (!StateMemory::works()) GTEST_SKIP() << "states are not compared under a sanitizer";
  Explorer explorer([] { return std::make_unique<Adding>(3, 10); }, {});
  const Explored explored = explorer.explore();
  EXPECT_TRUE(explored.whole);
  // 33! / (11! 11! 11!), of which a state is how far each has come, while two may go on.
  EXPECT_NEAR(static_cast<double>(explored.interleavings), 136526995463040.0, 1.0);
  EXPECT_LE(explored.states, 12U * 12 * 12);
  EXPECT_GE(explored.states, 11U * 11 * 11);
  EXPECT_LT(explored.runs, 4000U);
}

TEST(Explorer, keeps_to_a_bound_on_preemptions) {
  // None: each runs to its end, in every order of the three.
  for (const bool merge : {false, true}) {
    std::set<std::string> orders;
    Explorer explorer([&] { return std::make_unique<Counting>(std::vector{3, 2, 1}, &orders); },
                      {.merge = merge, .preemptions_max = 0});
    EXPECT_EQ(explorer.explore().interleavings, 6);
    EXPECT_EQ(orders.size(), 6U);
    EXPECT_TRUE(orders.contains("aaaabbbcc"));
  }
  u64 before = 6;
  for (u32 bound = 1; bound <= 7; ++bound) {
    std::set<std::string> orders;
    Explorer explorer([&] { return std::make_unique<Counting>(std::vector{3, 2, 1}, &orders); },
                      {.preemptions_max = bound});
    (void)explorer.explore();
    EXPECT_GE(orders.size(), before);
    before = orders.size();
  }
  EXPECT_EQ(before, 1260U);
}

// Each adds one: looks and writes in one section of the lock, or in two.
class Racing final : public Scene {
 public:
  explicit Racing(bool apart) : apart_(apart) {}
  std::vector<std::function<void()>> actors() override {
    const auto body = [this] {
      mutex_.lock();
      const int seen = sum_;
      if (apart_) {
        mutex_.unlock();
        mutex_.lock();
      }
      sum_ = seen + 1;
      mutex_.unlock();
    };
    return {body, body, body};
  }
  const char* end() override { return sum_ == 3 ? nullptr : "an addition is lost"; }

 private:
  bool apart_;
  Mutex mutex_;
  int sum_ = 0;
};

TEST(Explorer, finds_a_race_tells_it_and_repeats_it) {
  for (const bool merge : {false, true}) {
    Explorer right([] { return std::make_unique<Racing>(false); }, {.merge = merge});
    EXPECT_EQ(right.explore().wrong, "");
    Explorer wrong([] { return std::make_unique<Racing>(true); }, {.merge = merge});
    const Explored found = wrong.explore();
    EXPECT_FALSE(found.whole);
    EXPECT_EQ(found.wrong, "an addition is lost");
    EXPECT_GT(found.story.size(), 10U);
    EXPECT_EQ(wrong.repeat(found.choices).wrong, found.wrong);
  }
}

TEST(Explorer, a_lock_that_is_held_is_no_choice) {
  if (!StateMemory::works()) GTEST_SKIP() << "states are not compared under a sanitizer";
  // Without that rule each of them would try, and wait, in every order.
  Explorer explorer([] { return std::make_unique<Racing>(false); }, {});
  const Explored explored = explorer.explore();
  EXPECT_TRUE(explored.whole);
  EXPECT_GT(explored.interleavings, 6);
  EXPECT_LT(explored.runs, 100U);
}

// A queue with a condition: one waits for the others.
class Queueing final : public Scene {
 public:
  std::vector<std::function<void()>> actors() override {
    return {[this] {
              for (int i = 0; i < 2; ++i) {
                Lock lock(mutex_);
                while (queued_ == 0) filled_.wait(mutex_);
                --queued_;
                ++taken_;
              }
            },
            [this] { put(); }, [this] { put(); }};
  }
  const char* end() override { return taken_ == 2 ? nullptr : "something is left in the queue"; }

 private:
  void put() {
    Lock lock(mutex_);
    ++queued_;
    filled_.notify_one();
  }
  Mutex mutex_;
  CondVar filled_;
  int queued_ = 0, taken_ = 0;
};

TEST(Explorer, waits_and_wakes_are_those_of_the_product) {
  if (!StateMemory::works()) GTEST_SKIP() << "states are not compared under a sanitizer";
  Explorer explorer([] { return std::make_unique<Queueing>(); }, {});
  const Explored explored = explorer.explore();
  EXPECT_TRUE(explored.whole);
  EXPECT_EQ(explored.wrong, "");
  EXPECT_GT(explored.interleavings, 100);
}

class Crossing final : public Scene {
 public:
  std::vector<std::function<void()>> actors() override {
    return {[this]() LK_NO_ANALYSIS { both(first_, second_); },
            [this]() LK_NO_ANALYSIS { both(second_, first_); }};
  }

 private:
  static void both(Mutex& one, Mutex& other) LK_NO_ANALYSIS {
    one.lock();
    other.lock();
    other.unlock();
    one.unlock();
  }
  Mutex first_, second_;
};

TEST(ExplorerDeathTest, a_deadlock_stops_the_process_and_says_by_which_choices) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      {
        Explorer explorer([] { return std::make_unique<Crossing>(); }, {});
        (void)explorer.explore();
      },
      "a deadlock: all fibers wait for ever(.|\n)*explorer: choices [0-9]+");
}

}  // namespace
}  // namespace latchkey::tests
