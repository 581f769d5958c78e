# `./run ci` copies this to build/ci/CTestTestfile.cmake, so that one ctest runs everything and its
# summary is the last word. Lint uses both cores itself, so it runs alone.
add_test(lint bash ../../run lint)
set_tests_properties(lint PROPERTIES RUN_SERIAL ON TIMEOUT 1500)
subdirs(../release ../asan ../tsan)
