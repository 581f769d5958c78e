"""fsx (ltp/fsx of fstests) on a place, while its key is removed and added."""
import os
import random
import subprocess
import threading
import time

from places import LIVING

# In these open files go on as if nothing was. Truncate and fallocate do not wait for a suspended
# key (docs/limits.md), so fsx does neither beside `suspend`.
WHOLE = ("soft", "sealed", "safe")
LITE = ("soft", "sealed", "suspend", "suspend")
LITE_OPTIONS = "-L -F -H -z -C -I -J -B -E -0".split()


class Cycles(threading.Thread):
    """Removes the key and adds it again until it is told to end, while `busy()` says that a program
    has a file open. `wrong` is what was not as it should be."""

    def __init__(self, here, modes, seed, busy, pause=0.2):
        super().__init__()
        self.here, self.modes, self.busy, self.pause = here, modes, busy, pause
        self.random = random.Random(seed)
        self.done = dict.fromkeys(sorted(set(modes)), 0)
        self.wrong, self.ending = "", threading.Event()

    def run(self):
        while not self.ending.wait(self.random.uniform(0, self.pause)) and not self.wrong:
            mode = self.random.choice(self.modes)
            code = self.here.lock(mode)
            if self.busy() and code != LIVING[mode]:
                self.wrong = f"lock --mode {mode} exits {code}"
            time.sleep(self.random.uniform(0, self.pause / 2))
            try:
                self.here.unlock()
            except subprocess.CalledProcessError as error:
                self.wrong = f"unlock after {mode}: {error.stderr.strip()}"
            self.done[mode] += 1

    def end(self):
        self.ending.set()
        self.join()


class Piece:
    """Operations on one file under one seed. `lite` leaves out what changes its size."""

    def __init__(self, program, here, seed, operations, lite):
        self.path, self.logs = here.work / f"fsx{seed}", here.at / f"logs{seed}"
        self.logs.mkdir()
        self.output = self.logs / "output"
        words = ["-q", "-S", seed, "-N", operations, "-l", 500_000, "-o", 90_000]
        if lite:
            self.path.write_bytes(bytes(400_000))
            words += LITE_OPTIONS
        self.words = [str(word) for word in words]
        with open(self.output, "wb") as output:
            self.process = subprocess.Popen(
                [str(program), *self.words, "-P", f"{self.logs}/", str(self.path)], stdout=output,
                stderr=subprocess.STDOUT, cwd=here.at)

    def open_there(self):
        """Whether it has its file open now; it closes it when it ends, and never before."""
        try:
            return any(os.readlink(f"/proc/{self.process.pid}/fd/{fd}") == str(self.path)
                       for fd in os.listdir(f"/proc/{self.process.pid}/fd"))
        except OSError:
            return False

    def wait_until_open(self):
        while self.process.poll() is None and not self.open_there():
            time.sleep(0.01)

    def wait(self, timeout=None):
        """What is wrong, after its end."""
        code = self.process.wait(timeout)
        said = self.output.read_text(errors="replace")
        if code == 0:
            self.path.unlink()
            return ""
        return f"fsx {' '.join(self.words)} exits {code}: {said[-3000:]}"


def run_piece(program, here, seed, operations, lite):
    """(key cycles by mode, what is wrong)"""
    piece = Piece(program, here, seed, operations, lite)
    cycles = None
    if here.encrypted:
        piece.wait_until_open()
        cycles = Cycles(here, LITE if lite else WHOLE, seed, piece.open_there)
        cycles.start()
    try:
        piece.process.wait(3000)
    except subprocess.TimeoutExpired:
        pass
    finally:
        piece.process.kill()
        if cycles is not None:
            cycles.end()
    why = piece.wait(60)
    return (cycles.done, why or cycles.wrong) if cycles else ({}, why)


def case(here, options, state, save):
    """Pieces until there are options.operations; `state` is what was done by earlier calls."""
    state.setdefault("operations", 0)
    state.setdefault("next_seed", options.seed)
    cycles = state.setdefault("cycles", {})
    while state["operations"] < options.operations:
        seed = state["next_seed"]
        done, why = run_piece(options.fstests / "ltp/fsx", here, seed, options.piece,
                              lite=seed % 5 == 4)
        if why:
            raise ValueError(f"seed {seed}: {why}")
        for mode, count in done.items():
            cycles[mode] = cycles.get(mode, 0) + count
        state["operations"] += options.piece
        state["next_seed"] += 1
        save()
    told = ", ".join(f"{mode} {count}" for mode, count in sorted(cycles.items()))
    return (f"{state['operations']} operations, seeds {options.seed} to {state['next_seed'] - 1}, "
            f"{sum(cycles.values())} key cycles ({told or 'no key here'}): no difference")
