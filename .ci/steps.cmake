# `./run ci` copies this to build/ci/CTestTestfile.cmake, so that one ctest runs everything and its
# summary is the last word. Lint and the seeded bugs use both cores themselves, so they run alone.
add_test(lint bash ../../run lint)
add_test(seeded_bugs bash ../../run mutants)
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
