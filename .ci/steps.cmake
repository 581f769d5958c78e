# `./run ci` copies this to build/ci/CTestTestfile.cmake, so that one ctest runs everything and its
# summary is the last word. Lint and the seeded bugs use both cores themselves, so they run alone.
add_test(lint bash ../../run lint)
add_test(seeded_bugs bash ../../run mutants)
set_tests_properties(lint seeded_bugs PROPERTIES RUN_SERIAL ON TIMEOUT 1500)
add_test(guest python3 ../../tests/guest/guest.py ../release/tests/crypto_test "*kcapi*")
set_tests_properties(guest PROPERTIES TIMEOUT 600 SKIP_RETURN_CODE 77)
subdirs(../release ../asan ../tsan)
