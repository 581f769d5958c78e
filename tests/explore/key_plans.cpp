// What three callers do in turn around a removal. The first one's first removal is the one that the
// others wait for where they do.

#include <algorithm>

#include "tests/explore/key_scene.h"

namespace latchkey::tests {

namespace {

// All that is written goes through a front's page.
std::vector<KeyPlan> front_plans(const Act& remove_it) {
  using enum Verb;
  return {
      {.name = "a front's page",
       .callers = {{remove_it}, {{store}, {close}}, {{write_back}, {add}}},
       .has_file_open = {false, true, false},
       .front = true},
      {.name = "a front's page, stored twice",
       .callers = {{remove_it}, {{store}, {store}, {close}}, {{store}, {close}}},
       .has_file_open = {false, true, true},
       .front = true},
      {.name = "a front's page, added after the removal",
       .callers = {{remove_it}, {{store}, {store}, {close}}, {{await_removal}, {add}}},
       .has_file_open = {false, true, false},
       .front = true},
      {.name = "a front's page, the flush fails",
       .callers = {{remove_it}, {{store}, {close}}, {{write_back}, {store}}},
       .has_file_open = {false, true, true},
       .flush_fails = true,
       .front = true},
  };
}

}  // namespace

std::vector<KeyPlan> key_plans(keymgr::RemovalMode mode) {
  using enum Verb;
  using keymgr::RemovalMode;
  const Act remove_it{.verb = remove, .mode = mode};
  std::vector<KeyPlan> plans = {
      {.name = "a closed file",
       .callers = {{remove_it}, {{open}, {write}, {close}}, {{writeback}, {add}}},
       .has_file_open = {false, false, false},
       .dirty = true},
      {.name = "an open file",
       .callers = {{remove_it}, {{write}, {close}}, {{writeback}, {add}}},
       .has_file_open = {false, true, false}},
      {.name = "two open files",
       .callers = {{remove_it}, {{write}, {close}}, {{write}, {close}}},
       .has_file_open = {false, true, true}},
      {.name = "added, then removed by another",
       .callers = {{remove_it}, {{write}, {close}}, {{add}, remove_it}},
       .has_file_open = {false, true, false}},
      {.name = "two removals",
       .callers = {{remove_it}, {{write}, {close}}, {remove_it}},
       .has_file_open = {false, true, false}},
      {.name = "soft, then this",
       .callers = {{{.verb = remove}, remove_it}, {{write}, {close}}, {{open}, {close}}},
       .has_file_open = {false, true, false}},
      {.name = "this, then hard",
       .callers = {{remove_it, {.verb = remove, .mode = RemovalMode::hard}},
                   {{write}, {close}},
                   {{writeback}}},
       .has_file_open = {false, true, false}},
      {.name = "removed, added, removed",
       .callers = {{remove_it, {add}, remove_it}, {{write}, {close}}, {{open}, {close}}},
       .has_file_open = {false, true, false}},
      {.name = "another user adds",
       .callers = {{remove_it}, {{write}, {close}}, {{.verb = add, .uid = 2}}},
       .has_file_open = {false, true, false}},
      {.name = "two users remove",
       .claims = {1, 2},
       .callers = {{remove_it}, {{write}, {close}}, {{.verb = remove, .uid = 2, .mode = mode}}},
       .has_file_open = {false, true, false}},
      {.name = "all users, one adds",
       .claims = {1, 2},
       .callers = {{{.verb = remove_all, .mode = mode}}, {{write}, {close}}, {{add}}},
       .has_file_open = {false, true, false}},
      {.name = "all users again, one adds",
       .callers = {{remove_it, {.verb = remove_all, .mode = mode}},
                   {{write}, {close}},
                   {{.verb = add, .uid = 2}}},
       .has_file_open = {false, true, false}},
      {.name = "added after the removal",
       .callers = {{remove_it}, {{write}, {write}, {close}}, {{await_removal}, {add}}},
       .has_file_open = {false, true, false}},
      {.name = "its flush fails",
       .callers = {{remove_it}, {{write}, {close}}, {{open}, {close}}},
       .has_file_open = {false, true, false},
       .flush_fails = true},
      {.name = "its flush fails, another removes",
       .callers = {{remove_it}, {{write}, {close}}, {remove_it}},
       .has_file_open = {false, true, false},
       .flush_fails = true},
  };
  const std::vector<KeyPlan> of_a_front = front_plans(remove_it);
  plans.insert(plans.end(), of_a_front.begin(), of_a_front.end());
  for (KeyPlan& plan : plans)
    if (plan.claims.empty()) plan.claims = {1};
  return plans;
}

}  // namespace latchkey::tests
