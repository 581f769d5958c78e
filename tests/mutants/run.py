#!/usr/bin/env python3
"""Seeded bugs: each NAME.patch in this folder puts one bug into a copy of the tree, and the test
that it names must then fail. The engine's source carries no test switch.

A patch begins with lines of its own, before the first "diff --git":

    bug: the superblock is written before the flush
    test: store_crash_test --gtest_filter=StoreCrash.*
    seconds: 60

`test` is a test program, or a script of tests/, with its arguments; `seconds` (60 if left out)
bounds it. Verdicts:

    caught     the test failed, or hung past its bound, or died
    SURVIVED   the test passed: the suite does not see this bug
    BROKEN     the patch no longer applies or does not build, or the test fails without it

With --schedules N each bug is also given to the simulator, for so many schedules at most: the last
column says how many it took, or `-` where it saw nothing.
"""
import argparse
import dataclasses
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
NOT_COPIED = {"build", ".git", "__pycache__"}
ROW = "{:9} {:44} {:>8} {:>9}  {}"


@dataclasses.dataclass
class Mutant:
    name: str
    patch: pathlib.Path
    bug: str
    command: list
    seconds: float

    @property
    def program(self):
        return self.command[0]

    @property
    def targets(self):
        return ["latchkey", "needle_tool"] if self.program.endswith(".py") else [self.program]


class Broken(Exception):
    """Neither caught nor survived: the experiment itself did not work."""


def read_mutant(path):
    header = path.read_text().split("\ndiff --git", 1)[0]
    fields = dict(re.findall(r"^(bug|test|seconds): *(.+?) *$", header, re.MULTILINE))
    for field in ("bug", "test"):
        if field not in fields:
            raise Broken(f"{path.name} has no line '{field}:'")
    return Mutant(path.stem, path, fields["bug"], shlex.split(fields["test"]),
                  float(fields.get("seconds", 60)))


def run(command, cwd, seconds=None, env=None):
    """(exit code or None after `seconds`, output). What it started ends with it."""
    process = subprocess.Popen(command, cwd=cwd, env=env, text=True, errors="replace",
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, start_new_session=True)
    try:
        output = process.communicate(timeout=seconds)[0]
        return process.returncode, output
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return None, process.communicate()[0]


def how_it_failed(code, output):
    """The first test that failed, or the one that ran when the program died or hung."""
    failed = [name for name in re.findall(r"^\[  FAILED  \] ([^\s,]+)", output, re.MULTILINE)
              if "." in name] or re.findall(r"^(?:FAIL|ERROR): (\S+)", output, re.MULTILINE)
    if failed:
        return failed[0]
    end = "hung" if code is None else f"signal {-code}" if code < 0 else f"exit {code}"
    begun = re.findall(r"^\[ RUN      \] (\S+)", output, re.MULTILINE)
    return f"{begun[-1]} ({end})" if begun else end


class Bench:
    """A copy of the tree with one build folder, so that a bug rebuilds only what it touches."""

    def __init__(self, source, folder, jobs):
        self.source, self.folder, self.jobs = source, folder, jobs
        self.tree, self.build_folder = folder / "tree", folder / "build"
        # git must not find the repository that the copy lies in: it would skip the patch's files.
        self.env = dict(os.environ, GIT_CEILING_DIRECTORIES=str(folder),
                        CCACHE_BASEDIR=str(folder), CCACHE_NOHASHDIR="1",
                        LATCHKEY_BINARY=str(self.build_folder / "latchkey"),
                        LATCHKEY_TOOLS=str(self.build_folder / "tests"))

    def copy(self):
        """Only what differs is written, so a second run builds next to nothing."""
        wanted = set()
        for folder, subfolders, names in os.walk(self.source):
            subfolders[:] = set(subfolders) - NOT_COPIED
            for path in (pathlib.Path(folder) / name for name in names if name != ".git"):
                relative = path.relative_to(self.source)
                wanted.add(relative)
                target = self.tree / relative
                if not target.exists() or target.read_bytes() != path.read_bytes():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, target)
                    shutil.copymode(path, target)
        for path in [p for p in self.tree.rglob("*") if p.is_file()]:
            if path.relative_to(self.tree) not in wanted:
                path.unlink()

    def configure(self):
        launcher = ["-DCMAKE_CXX_COMPILER_LAUNCHER=ccache"] if shutil.which("ccache") else []
        code, output = run(["cmake", "-G", "Ninja", "-S", self.tree, "-B", self.build_folder,
                            "-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O1", *launcher],
                           self.folder, env=self.env)
        if code != 0:
            raise Broken("cmake failed:\n" + output)

    def build(self, programs):
        code, output = run(["cmake", "--build", self.build_folder, "-j", str(self.jobs),
                            "--target", *programs], self.folder, env=self.env)
        if code != 0:
            raise Broken("does not build:\n" + output[-3000:])

    def test(self, mutant):
        if mutant.program.endswith(".py"):
            command = [sys.executable, self.tree / "tests" / mutant.program, *mutant.command[1:]]
            return run(command, self.build_folder, mutant.seconds, self.env)
        program = next((p for p in (self.build_folder / "tests" / mutant.program,
                                    self.build_folder / mutant.program) if p.exists()), None)
        if program is None:
            raise Broken(f"there is no program {mutant.program}")
        return run([program, *mutant.command[1:]], self.build_folder, mutant.seconds, self.env)

    def simulate(self, schedules):
        """At which schedule the simulator fails; None: at none of so many."""
        code, output = run([self.build_folder / "tests/sim_run", "--first", "--schedules",
                            str(schedules)], self.build_folder, env=self.env)
        if code == 0:
            return None
        failed = re.search(r"^schedule (\d+) failed", output, re.MULTILINE)
        if failed is None:
            raise Broken("the simulator ended without a word:\n" + output[-2000:])
        return int(failed[1])

    def patch(self, mutant):
        return run(["git", "apply", str(mutant.patch.resolve())], self.tree, env=self.env)

    def check_baseline(self, mutants):
        """A test that fails or runs nothing without the bug would prove nothing with it."""
        self.build(sorted({target for mutant in mutants for target in mutant.targets}))
        results = {}
        for mutant in mutants:
            key = tuple(mutant.command)
            if key not in results:
                results[key] = self.test(mutant)
        return results

    def judge(self, mutant, baseline, schedules):
        """(verdict, detail, at which schedule the simulator failed); raises Broken."""
        code, output = baseline
        if code != 0:
            raise Broken(f"the test fails without the bug:\n{output[-2000:]}")
        if re.search(r"Running 0 tests|\[  PASSED  \] 0 tests|^Ran 0 tests|skipped=", output, re.M):
            raise Broken("the filter selects no test, or one that was skipped")
        before = {p: p.read_bytes() for p in self.touched(mutant)}
        code, output = self.patch(mutant)
        if code != 0:
            raise Broken("the patch does not apply:\n" + output)
        try:
            if all(p.exists() and p.read_bytes() == text for p, text in before.items()):
                raise Broken("the patch changes nothing")
            self.build([*mutant.targets, *(["sim_run"] if schedules else [])])
            code, output = self.test(mutant)
            met = self.simulate(schedules) if schedules else None
        finally:
            for path, text in before.items():
                path.write_bytes(text)
        if code == 0:
            return "SURVIVED", "", met
        return "caught", how_it_failed(code, output), met

    def touched(self, mutant):
        paths = re.findall(r"^\+\+\+ b/(\S+)", mutant.patch.read_text(), re.MULTILINE)
        missing = [path for path in paths if not (self.tree / path).is_file()]
        if not paths or missing:
            raise Broken(f"the patch does not apply: no file {', '.join(missing) or 'named'}")
        return [self.tree / path for path in paths]


def report(mutant, verdict, detail, seconds, met):
    program = f"{mutant.program}: {detail}" if verdict == "caught" else detail or mutant.program
    print(ROW.format(verdict, mutant.name, f"{seconds:.1f}", met or "-", program), flush=True)


def main():
    parser = argparse.ArgumentParser(description="run the seeded bugs")
    parser.add_argument("--only", action="append", metavar="NAME")
    parser.add_argument("--schedules", type=int, default=0, metavar="N",
                        help="of the simulator, for each bug")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--tree", type=pathlib.Path, default=ROOT, help="what is copied")
    parser.add_argument("--patches", type=pathlib.Path, default=ROOT / "tests/mutants")
    parser.add_argument("--folder", type=pathlib.Path, default=ROOT / "build/mutants")
    options = parser.parse_args()

    started = time.monotonic()
    paths = sorted(options.patches.glob("*.patch"))
    if options.only:
        unknown = set(options.only) - {path.stem for path in paths}
        if unknown:
            sys.exit(f"seeded bugs: there is no {', '.join(sorted(unknown))}")
        paths = [path for path in paths if path.stem in options.only]
    if not paths:
        sys.exit(f"seeded bugs: no patch in {options.patches}")

    bench = Bench(options.tree.resolve(), options.folder.resolve(), options.jobs)
    bench.folder.mkdir(parents=True, exist_ok=True)
    try:
        mutants = [read_mutant(path) for path in paths]
        bench.copy()
        bench.configure()
        baseline = bench.check_baseline(mutants)
        if options.schedules:
            bench.build(["sim_run"])
            if (met := bench.simulate(options.schedules)) is not None:
                raise Broken(f"schedule {met} of the simulator fails without any bug")
    except Broken as broken:
        sys.exit(f"seeded bugs: {broken}")

    print(f"seeded bugs: {len(mutants)}; the copy was built and its tests ran in "
          f"{time.monotonic() - started:.0f} s")
    print(ROW.format("verdict", "bug", "seconds", "schedules", "killed by"), flush=True)
    bad = []
    for mutant in mutants:
        begun = time.monotonic()
        met = None
        try:
            verdict, detail, met = bench.judge(mutant, baseline[tuple(mutant.command)],
                                               options.schedules)
        except Broken as broken:
            verdict, detail = "BROKEN", str(broken)
        report(mutant, verdict, detail, time.monotonic() - begun, met)
        if verdict != "caught":
            bad.append(mutant.name)
    print(f"seeded bugs: {len(mutants) - len(bad)} of {len(mutants)} caught "
          f"in {time.monotonic() - started:.0f} s{'; not: ' + ' '.join(bad) if bad else ''}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
