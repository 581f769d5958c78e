#!/usr/bin/env python3
"""Lint: clang-19 compiles every source with its warnings and the thread-safety analysis as errors,
and clang-format-19 finds nothing to change. Needs build/lint/compile_commands.json (./run lint)."""
import argparse
import concurrent.futures
import json
import pathlib
import shlex
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run(command):
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    return done.returncode, done.stdout + done.stderr


def syntax_command(entry):
    words = shlex.split(entry["command"])
    if "-o" in words:
        at = words.index("-o")
        del words[at:at + 2]
    words = [word for word in words if word != "-c"]
    return words + ["-fsyntax-only"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=2)
    jobs = parser.parse_args().jobs
    entries = json.loads((ROOT / "build/lint/compile_commands.json").read_text())
    tracked = run(["git", "ls-files", "*.h", "*.cpp"])
    files = tracked[1].split() if tracked[0] == 0 else \
        [str(p.relative_to(ROOT)) for p in ROOT.glob("*/**/*.[hc]*") if "build" not in p.parts]
    work = [(entry["file"], syntax_command(entry)) for entry in entries]
    work += [(name, ["clang-format-19", "--dry-run", "-Werror", name]) for name in files
             if (ROOT / name).exists()]
    if not entries or not files:
        print("lint: nothing to look at")
        return 1
    failed = 0
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for (name, _), (code, text) in zip(work, pool.map(lambda item: run(item[1]), work)):
            if code != 0:
                failed += 1
                print(f"lint: {name}\n{text}")
    print(f"lint: {len(entries)} sources compiled by clang-19, {len(files)} files formatted, "
          f"{failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
