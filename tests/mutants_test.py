"""The runner of the seeded bugs (tests/mutants/run.py) tells a bug that is seen from one that is
not.

A tiny program with a test of its own stands for the tree; each patch has a known verdict.
"""
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

RUNNER = pathlib.Path(__file__).parent / "mutants/run.py"

FILES = {
    "CMakeLists.txt": """cmake_minimum_required(VERSION 3.25)
project(sample CXX)
add_executable(sample_test sample.cpp)
add_executable(sim_run simulator.cpp sample.cpp)
target_compile_definitions(sim_run PRIVATE main=other)
set_target_properties(sim_run PROPERTIES RUNTIME_OUTPUT_DIRECTORY tests)
""",
    "simulator.cpp": """#include <cstdio>
#undef main
int twice(int a);
int main() {
  if (twice(2) == 4) return 0;
  std::puts("schedule 17 failed: seed 18");
  return 1;
}
""",
    "sample.cpp": """int twice(int a) { return a + a; }
int unseen() { return 1; }
int main(int count, char**) {
  while (twice(1) == 0) {
  }
  return count > 1 || twice(2) == 4 ? count - 1 : 1;
}
""",
}


def patch(old, new, test="sample_test", file="sample.cpp", seconds=20):
    return f"""bug: {old} becomes {new}
test: {test}
seconds: {seconds}

diff --git a/{file} b/{file}
--- a/{file}
+++ b/{file}
@@ -1,2 +1,2 @@
-{old}
+{new}
 int unseen() {{ return 1; }}
"""


TWICE = FILES["sample.cpp"].splitlines()[0]
SURVIVES = patch(TWICE, "int twice(int a) { return 2 * a; }")
CAUGHT = patch(TWICE, "int twice(int a) { return a; }")
HANGS = patch(TWICE, "int twice(int a) { return a == 1 ? 0 : a + a; }", seconds=1)


@unittest.skipUnless(shutil.which("git"), "git is missing: it applies the patches")
class SeededBugs(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.root = pathlib.Path(self.folder.name)
        for name, text in FILES.items():
            self.write("tree", name, text)

    def write(self, folder, name, text):
        (self.root / folder).mkdir(exist_ok=True)
        (self.root / folder / name).write_text(text)

    def verdicts(self, patches, *arguments):
        for name, text in patches.items():
            self.write("patches", name + ".patch", text)
        done = subprocess.run(
            [sys.executable, RUNNER, "--tree", self.root / "tree", "--patches",
             self.root / "patches", "--folder", self.root / "work", "--jobs", "1", *arguments],
            capture_output=True, text=True)
        rows = [line.split() for line in done.stdout.splitlines()]
        self.schedules = {row[1]: row[3] for row in rows if row and row[0] == "caught"}
        return done.returncode, {row[1]: row[0] for row in rows
                                 if row and row[0] in ("caught", "SURVIVED", "BROKEN")}

    def test_each_kind_of_patch_gets_its_verdict(self):
        code, verdicts = self.verdicts({
            "a_survives": SURVIVES,
            "b_caught": CAUGHT,
            "c_hangs": HANGS,
            "d_does_not_apply": patch("int gone;", "int new;"),
            "e_no_such_file": patch(TWICE, "int a;", file="gone.cpp"),
            "f_does_not_build": patch(TWICE, "int twice(int a) { return b; }"),
            "g_fails_without": patch(TWICE, "int twice(int a) { return a; }", "sample_test 1 2"),
            "h_caught_after_the_others": CAUGHT,
        })
        self.assertEqual(verdicts, {
            "a_survives": "SURVIVED", "b_caught": "caught", "c_hangs": "caught",
            "d_does_not_apply": "BROKEN", "e_no_such_file": "BROKEN",
            "f_does_not_build": "BROKEN", "g_fails_without": "BROKEN",
            "h_caught_after_the_others": "caught"})
        self.assertEqual(code, 1)

    def test_one_survivor_is_a_failure_and_none_is_not(self):
        self.assertEqual(self.verdicts({"a": CAUGHT, "b": SURVIVES}, "--only", "a"),
                         (0, {"a": "caught"}))
        self.assertEqual(self.verdicts({}, "--only", "b"), (1, {"b": "SURVIVED"}))

    def test_the_simulator_gets_each_bug_too(self):
        unseen = FILES["sample.cpp"].splitlines()[1]
        seen_by_the_test_alone = f"""bug: {unseen}
test: sample_test
seconds: 20

diff --git a/sample.cpp b/sample.cpp
--- a/sample.cpp
+++ b/sample.cpp
@@ -2,3 +2,3 @@
 {unseen}
-int main(int count, char**) {{
+int main(int count, char**) {{ return 1;
   while (twice(1) == 0) {{
"""
        self.assertEqual(self.verdicts({"a": CAUGHT, "b": seen_by_the_test_alone},
                                       "--schedules", "100"),
                         (0, {"a": "caught", "b": "caught"}))
        self.assertEqual(self.schedules, {"a": "17", "b": "-"})

    def test_no_patch_and_no_header_are_failures(self):
        self.write("patches", "readme", "")
        self.assertEqual(self.verdicts({}), (1, {}))
        self.assertEqual(self.verdicts({"a": CAUGHT.replace("test:", "tset:")}), (1, {}))


if __name__ == "__main__":
    unittest.main()
