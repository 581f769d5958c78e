#!/usr/bin/env python3
"""Lint: clang-tidy-19, which compiles with the warnings and the thread-safety analysis as errors,
finds nothing in the rooms; clang++-19 compiles the rest; clang-format-19 has nothing to change.
Needs build/lint/compile_commands.json (./run lint)."""
import argparse
import concurrent.futures
import json
import pathlib
import shlex
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Tests and benchmarks are compiled only: gtest's macros take most of clang-tidy's time.
NOT_TIDIED = ("tests/", "bench/", "build/")


def run(command):
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    return done.returncode, done.stdout + done.stderr


def syntax_command(entry):
    words = shlex.split(entry["command"])
    if "-o" in words:
        at = words.index("-o")
        del words[at:at + 2]
    return [word for word in words if word != "-c"] + ["-fsyntax-only"]


def compile_command(entry):
    name = str(pathlib.Path(entry["file"]).relative_to(ROOT))
    if name.startswith(NOT_TIDIED):
        return name, syntax_command(entry)
    return name, ["clang-tidy-19", "--quiet", "-p", "build/lint", name]


def sources():
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("*/**/*")
                  if path.suffix in (".h", ".cpp", ".inc")
                  and path.relative_to(ROOT).parts[0] != "build")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=2)
    jobs = parser.parse_args().jobs
    started = time.monotonic()
    entries = json.loads((ROOT / "build/lint/compile_commands.json").read_text())
    files = sources()
    if not entries or not files:
        print("lint: nothing to look at")
        return 1
    work = [compile_command(entry) for entry in entries]
    work += [(name, ["clang-format-19", "--dry-run", "-Werror", name]) for name in files]
    failed = 0
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for (name, _), (code, text) in zip(work, pool.map(lambda item: run(item[1]), work)):
            if code != 0:
                failed += 1
                print(f"lint: {name}\n{text}", flush=True)
    print(f"lint: {len(entries)} sources compiled, {len(files)} files formatted, {failed} failed, "
          f"{time.monotonic() - started:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
