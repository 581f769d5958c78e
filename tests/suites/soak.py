#!/usr/bin/env python3
"""A mounted store under load, its daemon killed now and then: `./run soak mount [MINUTES]`.

Writers whose fsyncs are recorded, fsstress and fsx (where --fstests names a folder in which `make`
was run), and key cycles in all modes. Lives of a daemon come in fours: three are ended by kill -9
within half a minute, the fourth goes on for --life minutes and is umounted; then the store is
checked with all of its data and each acknowledged byte is looked for. Totals are kept in
build/soak/mount.json, and the next call adds to them. Needs root and /dev/fuse; exit 1 if anything
was found, 77 where nothing can be mounted.
"""
import argparse
import dataclasses
import hashlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import fsx  # noqa: E402
from acknowledged import Model, Writers  # noqa: E402
from places import place  # noqa: E402
from targets import LATCHKEY, run  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
SIZE = 4 << 30
KEEPING = "soft sealed safe freeze deny suspend".split()  # what was written is never lost
MODES = {"keeping": KEEPING, "lossy": [*KEEPING, "sync", "hard"]}
ROUND_SECONDS = 30
FSX_OPERATIONS, STRESS_OPERATIONS = 20_000, 1000


@dataclasses.dataclass
class Totals:
    minutes: float = 0
    programs: list = dataclasses.field(default_factory=list)
    kills: int = 0
    umounts: int = 0
    rounds: int = 0
    next_seed: int = 1
    fsx_operations: int = 0
    stress_operations: int = 0
    cycles: int = 0
    fsyncs: int = 0
    acknowledged_bytes: int = 0
    slots_verified: int = 0
    memory: list = dataclasses.field(default_factory=list)  # of each long life: [minute, rss, own]
    findings: list = dataclasses.field(default_factory=list)

    def line(self):
        return (f"{self.minutes:.0f} minutes, {len(self.programs)} builds, {self.kills} kills of "
                f"the daemon and {self.umounts} umounts, {self.cycles} key cycles, "
                f"{self.fsx_operations} fsx and {self.stress_operations} fsstress operations; "
                f"{self.fsyncs} fsyncs acknowledged {self.acknowledged_bytes >> 20} MiB, "
                f"{self.slots_verified} thousand-byte slots looked for; "
                f"{len(self.findings)} findings")


class Stress(threading.Thread):
    """fsstress in a directory, piece by piece until it is told to end."""

    def __init__(self, program, directory, seed):
        super().__init__()
        self.program, self.directory, self.seed = program, directory, seed
        self.ending, self.process, self.operations = threading.Event(), None, 0

    def run(self):
        while not self.ending.is_set():
            # A sync of the whole machine would wait for others' file systems, too.
            self.process = subprocess.Popen(
                [str(self.program), "-d", str(self.directory), "-p", "1", "-n",
                 str(STRESS_OPERATIONS), "-s", str(self.seed), "-f", "sync=0"],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
            if self.process.wait() == 0:
                self.operations += STRESS_OPERATIONS
            else:
                self.ending.wait(0.2)  # the key is away
            self.seed += 1

    def end(self):
        self.ending.set()
        while self.is_alive():
            if self.process is not None:
                try:
                    os.killpg(self.process.pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            self.join(0.1)


class Life:
    """One daemon's, from mount to kill or umount."""

    def __init__(self, here, model, options, totals):
        self.here, self.model, self.options, self.totals = here, model, options, totals
        self.acknowledged = here.work / "acknowledged"
        self.random = random.Random(totals.next_seed)

    def seed(self):
        self.totals.next_seed += 100_000
        return self.totals.next_seed

    def load(self, kind, seconds, kill):
        """`kind`: whole and lite have fsx and one writer; keeping and lossy two, fsstress and more
        modes, and may end by a kill."""
        program = self.options.fstests and self.options.fstests / "ltp/fsstress"
        seed = self.seed()
        self.model.lossy = kind == "lossy"
        writers = Writers(self.model, self.acknowledged, self.here.at, 1 + (kind in MODES), seed)
        stress = []
        for number, parent in enumerate((self.here.work, self.here.mnt)):
            directory = parent / "stress"
            directory.mkdir()
            if program and kind in MODES:
                stress.append(Stress(program, directory, seed + 1000 * number))
        for thread in stress:
            thread.start()
        ends = time.monotonic() + seconds
        try:
            if kind in MODES or not program:
                self.cycle(MODES.get(kind, MODES["keeping"]), seed, ends, kill)
            while kind not in MODES and program and time.monotonic() < ends:
                seed += 1
                self.fsx_piece(seed, kind == "lite")
        finally:
            for thread in stress:
                thread.end()
                self.totals.stress_operations += thread.operations
            if why := writers.end():
                self.find(why)
        self.totals.rounds += 1

    def cycle(self, modes, seed, ends, kill):
        cycles = fsx.Cycles(self.here, modes, seed, busy=lambda: False, pause=0.6)
        cycles.start()
        time.sleep(max(0, ends - time.monotonic()))
        if kill:
            cycles.ending.set()
            self.here.kill()
        cycles.end()
        self.totals.cycles += sum(cycles.done.values())
        if cycles.wrong and not kill:
            self.find(cycles.wrong)

    def fsx_piece(self, seed, lite):
        done, why = fsx.run_piece(self.options.fstests / "ltp/fsx", self.here, seed,
                                  FSX_OPERATIONS, lite)
        self.totals.cycles += sum(done.values())
        self.totals.fsx_operations += FSX_OPERATIONS
        if why:
            self.find(f"fsx, seed {seed}: {why}")

    def verify(self, settled):
        exact, wrong = self.model.verify(self.acknowledged, settled)
        self.totals.slots_verified += exact
        for why in wrong[:5]:
            self.find(f"lost: {why}")

    def clean(self):
        for parent in (self.here.work, self.here.mnt):
            run("rm", "-rf", parent / "stress")

    def find(self, why):
        self.totals.findings.append(why)
        print(f"soak: FOUND {why}", flush=True)

    def sample(self, begun):
        """The daemon's memory, when the kernel has forgotten all and the key was away."""
        run("mount", "-i", "-o", "remount", self.here.mnt)
        if (code := self.here.lock("soft", "--wait=60")) != 0:
            self.find(f"lock with nobody inside exits {code}")
        sample = [round((time.monotonic() - begun) / 60, 1), *self.here.memory()]
        self.here.unlock()
        return sample

    def short(self):
        self.load(self.random.choice(list(MODES)), self.random.uniform(3, 25), kill=True)
        self.totals.kills += 1
        self.reopen()

    def long(self, seconds):
        begun = time.monotonic()
        samples = []
        self.totals.memory.append(samples)
        kinds = ("keeping", "whole", "lossy", "whole", "lite")
        number = 0
        while time.monotonic() < begun + seconds and not self.totals.findings:
            self.load(kinds[number % len(kinds)], ROUND_SECONDS, kill=False)
            self.verify(settled=False)
            self.clean()
            samples.append(self.sample(begun))
            number += 1
        self.here.umount()
        self.totals.umounts += 1
        self.reopen()

    def reopen(self):
        """What a kill leaves is a committed tree and a log, and check looks at each by itself: what
        the next mount makes of the two is looked at behind it."""
        self.here.check()
        self.here.mount()
        self.here.again()
        self.verify(settled=True)
        self.clean()


def quarters(samples):
    """Own memory at the start, the quarter points and the end of a life, in MiB."""
    at = [samples[round(part * (len(samples) - 1) / 4)] for part in range(5)]
    return ", ".join(f"{minute:.0f} min {own / 1024:.1f}" for minute, _, own in at)


def say(totals):
    print(f"soak: {totals.line()}", flush=True)
    for samples in totals.memory:
        if len(samples) >= 5:
            print(f"soak: a daemon's own memory, MiB: {quarters(samples)}", flush=True)


def soak(options, totals, save):
    ends = time.monotonic() + options.minutes * 60
    before, begun = totals.minutes, time.monotonic()
    model = Model()
    with place("latchkey-encrypted", SIZE) as here:
        (here.work / "acknowledged").mkdir()
        run("sync", "-f", here.work)
        try:
            number = 0
            while time.monotonic() < ends and not totals.findings:
                known = model.fsyncs, model.acknowledged
                life = Life(here, model, options, totals)
                if number % 4 == 3:
                    life.long(min(options.life * 60, ends - time.monotonic()))
                else:
                    life.short()
                number += 1
                totals.fsyncs += model.fsyncs - known[0]
                totals.acknowledged_bytes += model.acknowledged - known[1]
                totals.minutes = before + (time.monotonic() - begun) / 60
                save()
                say(totals)
        except (subprocess.SubprocessError, OSError, RuntimeError) as error:
            why = f"{type(error).__name__}: {error} {getattr(error, 'stderr', '')}"
            totals.findings.append(f"{why}; {here.last_words()}")
        if totals.findings:
            here.keep(kept := options.state.with_suffix(".img"))
            print(f"soak: the image is kept: {kept}", flush=True)


def load_totals(path, program):
    totals = Totals(**json.loads(path.read_text())) if path.exists() else Totals()
    if program not in totals.programs:
        totals.programs.append(program)
    return totals


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("minutes", nargs="?", type=float, default=60)
    parser.add_argument("--fstests", type=pathlib.Path)
    parser.add_argument("--life", type=float, default=12, help="minutes of each fourth daemon")
    parser.add_argument("--state", type=pathlib.Path, default=ROOT / "build/soak/mount.json")
    options = parser.parse_args()
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        print("soak: nothing can be mounted here: it needs root and /dev/fuse")
        return 77
    if options.fstests and not (options.fstests / "ltp/fsstress").exists():
        sys.exit(f"{options.fstests} has no program ltp/fsstress: make")
    for one in signal.SIGINT, signal.SIGTERM:  # what is mounted goes, what was seen is kept
        signal.signal(one, signal.default_int_handler)
    options.state.parent.mkdir(parents=True, exist_ok=True)
    program = hashlib.sha256(pathlib.Path(LATCHKEY).read_bytes()).hexdigest()[:16]
    totals = load_totals(options.state, program)

    def save():
        fresh = options.state.with_suffix(".new")
        fresh.write_text(json.dumps(dataclasses.asdict(totals), indent=1))
        fresh.rename(options.state)

    try:
        soak(options, totals, save)
    except KeyboardInterrupt:
        print("soak: stopped; the next call goes on")
    except (subprocess.SubprocessError, OSError, RuntimeError) as error:
        totals.findings.append(f"{type(error).__name__}: {error} {getattr(error, 'stderr', '')}")
    save()
    say(totals)
    for finding in totals.findings:
        print(f"soak: FOUND {finding}")
    return 1 if totals.findings else 0


if __name__ == "__main__":
    sys.exit(main())
