#!/usr/bin/env python3
"""Every interleaving of the plans around a removal: `./run soak keys [MINUTES]` builds first.

Plan by plan and mode by mode (tests/key_explore.cpp), as many at a time as there are cores: first
half a minute for each, then more and more for those that were cut off, until all are explored whole
or MINUTES (60) are over. What is whole is kept in build/soak/keys.json, and the next call goes on
from there with the same program. What is wrong is told step by step, with the line that repeats it.
"""
import argparse
import concurrent.futures
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODES = "soft sealed safe sync freeze deny hard suspend".split()
SECONDS = (30, 240, 2000)
ROW = re.compile(r"^\S+ +.*? +(\d+) +(\d+) +\d+ +\S+  (.*)$")


class Soak:
    def __init__(self, options):
        self.options = options
        self.ends = time.monotonic() + options.minutes * 60
        self.program = hashlib.sha256(options.program.read_bytes()).hexdigest()
        self.whole, self.wrong = self.load(), []

    def load(self):
        try:
            state = json.loads(self.options.state.read_text())
        except (OSError, ValueError):
            return {}
        return state["whole"] if state.get("program") == self.program else {}

    def save(self):
        fresh = self.options.state.with_suffix(".new")
        fresh.write_text(json.dumps({"program": self.program, "whole": self.whole}, indent=1))
        fresh.rename(self.options.state)

    def explore(self, job, seconds):
        """Of one plan in one mode; nothing if the time is over."""
        left = self.ends - time.monotonic()
        if left <= 0 or self.wrong:
            return None
        mode, plan = job
        return subprocess.run([self.options.program, "--mode", mode, "--plan", plan,
                               "--seconds", str(int(min(seconds, left)) + 1)],
                              text=True, stdout=subprocess.PIPE, check=False)

    def note(self, job, done):
        row = next((r for r in map(ROW.match, done.stdout.splitlines()[1:]) if r), None)
        if done.returncode != 0 or row is None:
            self.wrong.append(job)
            print(done.stdout, flush=True)
            return
        print(done.stdout.splitlines()[1], flush=True)
        if row[3] == "all":
            self.whole["|".join(job)] = [int(row[1]), int(row[2])]
            self.save()

    def run(self, jobs):
        for seconds in SECONDS:
            with concurrent.futures.ThreadPoolExecutor(self.options.jobs) as pool:
                left = [job for job in jobs if "|".join(job) not in self.whole]
                futures = {pool.submit(self.explore, job, seconds): job for job in left}
                for future in concurrent.futures.as_completed(futures):
                    if done := future.result():
                        self.note(futures[future], done)

    def line(self, jobs):
        states, runs = (sum(row[i] for row in self.whole.values()) for i in (0, 1))
        return (f"soak: {len(self.whole)} of {len(jobs)} plans explored whole, {states} states, "
                f"{runs} runs; {len(self.wrong)} wrong")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("minutes", nargs="?", type=float, default=60)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    build = ROOT / "build"
    parser.add_argument("--program", type=pathlib.Path,
                        default=build / "release/tests/key_explore")
    parser.add_argument("--state", type=pathlib.Path, default=build / "soak/keys.json")
    options = parser.parse_args()

    options.state.parent.mkdir(parents=True, exist_ok=True)
    plans = subprocess.run([options.program, "--list", "plans"], text=True, check=True,
                           stdout=subprocess.PIPE).stdout.splitlines()
    jobs = [(mode, plan) for plan in plans for mode in MODES]
    soak = Soak(options)
    try:
        soak.run(jobs)
    except KeyboardInterrupt:
        print("soak: stopped; the next call goes on")
    print(soak.line(jobs))
    return 1 if soak.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
