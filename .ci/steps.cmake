# `./run ci` copies this to build/ci/CTestTestfile.cmake, so that one ctest runs everything and its
# summary is the last word. Lint and the seeded bugs use both cores themselves, so they run alone.
add_test(lint bash ../../run lint)
# Of the seeded bugs those of crash order, nonces, keys and checksums; `./run mutants` has all.
set(seeded_bugs
  bitmap_of_a_lost_commit_believed bitmap_written_in_place block_freed_before_commit
  block_freed_one_commit_early checksum_not_verified_on_read flush_skipped_after_superblock
  flush_skipped_before_superblock gate_checked_but_not_held last_close_does_not_commit
  last_close_drops_dirty_pages lease_returned_twice nonce_from_address nonce_reused_on_retry
  nonce_shared_by_extents second_node_place_not_written size_ahead_of_data
  superblock_before_nodes truncate_before_data use_checked_but_not_held wipe_skipped_on_error
  wiped_before_the_last_lease)
list(TRANSFORM seeded_bugs PREPEND --only=)
add_test(seeded_bugs bash ../../run mutants ${seeded_bugs})
set_tests_properties(lint seeded_bugs PROPERTIES RUN_SERIAL ON TIMEOUT 1500)
add_test(guest python3 ../../tests/guest/guest.py "*kcapi*"
  ../release/tests/crypto_test ../release/tests/xts_test)
set_tests_properties(guest PROPERTIES TIMEOUT 600 SKIP_RETURN_CODE 77)
# What latchkey leaves in memory, and what its time depends on, depends on who compiled it.
foreach(name secrets_scan_test constant_time_test disassembly_test)
  add_test(clang.${name} python3 ../../tests/${name}.py)
  set_tests_properties(clang.${name} PROPERTIES TIMEOUT 240 ENVIRONMENT
    "LATCHKEY_BINARY=../release-clang/latchkey;LATCHKEY_TOOLS=../release/tests")
endforeach()
subdirs(../release ../asan ../tsan)
