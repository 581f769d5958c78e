#!/usr/bin/env python3
"""Schedules of the simulator by the million: `./run soak schedules [MINUTES]` builds first.

As many processes as cores, until there are a million schedules or MINUTES (120) are over. What was
done is kept in build/soak/schedules.json, and the next call goes on from there with the same
program; another program begins anew. A schedule that fails is made shorter, and the line that
repeats it is printed and kept. The last line says how many there were and what they found.
"""
import argparse
import concurrent.futures
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
SUMS = re.compile(r"^(\d+) schedules, (\d+) calls, (\d+) crashes, (\d+) steps, (\d+) faults met, "
                  r"(\d+) detected, (\d+) a minute of processor time; (\d+) failed", re.M)
BATCH = 2000


@dataclasses.dataclass
class State:
    program: str
    next_seed: int = 1
    schedules: int = 0
    calls: int = 0
    crashes: int = 0
    faults: int = 0
    detected: int = 0
    cpu_minutes: float = 0
    minutes: float = 0
    findings: list = dataclasses.field(default_factory=list)

    def add(self, output):
        found = SUMS.search(output)
        if found is None:
            self.findings.append("a batch without its last line:\n" + output[-2000:])
            return
        schedules, calls, crashes, _, faults, detected, rate, _ = map(int, found.groups())
        self.schedules += schedules
        self.calls += calls
        self.crashes += crashes
        self.faults += faults
        self.detected += detected
        self.cpu_minutes += schedules / max(rate, 1)
        self.findings += re.findall(r"^build/release/tests/sim_run .*$", output, re.M)

    def rate(self):
        return round(self.schedules / self.cpu_minutes) if self.cpu_minutes else 0

    def line(self):
        return (f"{self.schedules} schedules in {self.minutes:.0f} minutes, {self.rate()} a minute "
                f"of one core; {self.crashes} crashes recovered and checked, {self.calls} calls, "
                f"{self.faults} faults met; {len(self.findings)} findings")


def load(path, program):
    try:
        state = State(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return State(program)
    return state if state.program == program else State(program)


def save(path, state):
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(dataclasses.asdict(state), indent=1))
    fresh.rename(path)


def say(text):
    print(f"soak: {text}", flush=True)


def run(sim_run, seed):
    return subprocess.run([sim_run, "--seed", str(seed), "--schedules", str(BATCH)], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False).stdout


def soak(options, state, state_path):
    begun = told = time.monotonic()
    before = state.minutes
    ends = begun + options.minutes * 60
    running = set()
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        while True:
            planned = state.schedules + len(running) * BATCH
            more = planned < options.count and time.monotonic() < ends
            if more and len(running) < options.jobs:
                running.add(pool.submit(run, options.program, state.next_seed))
                state.next_seed += BATCH
                continue
            if not running:
                return
            done, running = concurrent.futures.wait(
                running, return_when=concurrent.futures.FIRST_COMPLETED)
            known = len(state.findings)
            for future in done:
                state.add(future.result())
            state.minutes = before + (time.monotonic() - begun) / 60
            save(state_path, state)
            for finding in state.findings[known:]:
                say("FAILED " + finding)
            if time.monotonic() - told > 60:
                told = time.monotonic()
                say(state.line())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("minutes", nargs="?", type=float, default=120)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    build = ROOT / "build"
    parser.add_argument("--program", type=pathlib.Path, default=build / "release/tests/sim_run")
    parser.add_argument("--state", type=pathlib.Path, default=build / "soak/schedules.json")
    options = parser.parse_args()

    options.state.parent.mkdir(parents=True, exist_ok=True)
    program = hashlib.sha256(options.program.read_bytes()).hexdigest()
    state = load(options.state, program)
    if state.schedules:
        say(f"goes on: {state.line()}")
    try:
        soak(options, state, options.state)
    except KeyboardInterrupt:
        say("stopped; the next call goes on")
    say(state.line())
    return 1 if state.findings else 0


if __name__ == "__main__":
    sys.exit(main())
