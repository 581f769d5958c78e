#!/usr/bin/env python3
"""latchkey's mount and library beside gocryptfs, securefs, ext4, btrfs and fscrypt on ext4, and
beside two limits: the bare device, and a FUSE file system without work.

    compare.py [--rounds N] [--rows NAME,...] [--systems NAME,...] FOLDER

Each on a loop device of its own (bench/systems.py), row by row (bench/file_rows.h), the systems
alternating round by round. FOLDER gets compare.json: for each row and system every round's time,
the bytes that its device was written and the processor time of the whole machine meanwhile. It is
written behind each row; with --rows the other rows of one that is there are kept. Images lie in
LATCHKEY_BENCH_PATH, or in /dev/shm. Needs root; a system whose program is missing is left out by
name. bench/compare_report.py makes the table and the chart.
"""
import argparse
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

from systems import FILE_ROW, SYSTEMS, run

SIZE = 1 << 30
MARK = "LATCHKEY_COMPARE_MOUNTS"
NO_SUCH_ROW = 2  # file_row's status


def busy_seconds():
    """Of all processors, whoever used them: daemons and the kernel's threads, too."""
    fields = pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _, _, irq, softirq = map(int, fields[:7])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def step(system, row, what):
    if not system.is_mounted():
        raise RuntimeError(f"{system.name} is gone")
    done = subprocess.run([FILE_ROW, row["name"], what, *map(str, system.place())], text=True,
                          capture_output=True)
    if done.returncode == NO_SUCH_ROW:
        return None
    if done.returncode != 0:
        raise RuntimeError(f"{system.name}, {row['name']}, {what}: {done.stderr[-300:]}")
    return json.loads(done.stdout) if what == "run" else {}


def turn(system, row):
    """{ns, bytes, operations, written, cpu} of one round; nothing if there is no such row."""
    if step(system, row, "prepare") is None:
        return None
    if row["cold"]:
        system.anew()
    system.settle()
    written, cpu = system.loop.written(), busy_seconds()
    told = step(system, row, "run")
    told["written"] = system.loop.written() - written
    told["cpu"] = round(busy_seconds() - cpu, 2)
    step(system, row, "clear")
    return told


def measure(systems, rows, rounds, say, save):
    found = {}
    for row in rows:
        found[row["name"]] = {}
        left = list(systems)
        for number in range(rounds):
            # Each is the first one once.
            for system in left[number % len(left):] + left[:number % len(left)]:
                try:
                    told = turn(system, row)
                except RuntimeError as error:
                    found[row["name"]][system.name] = {"error": str(error)}
                    say(f"{row['name']}: {error}")
                    left.remove(system)
                    system.emptied()
                    continue
                if told is None:
                    left.remove(system)
                    continue
                found[row["name"]].setdefault(system.name, []).append(told)
            say(f"{row['name']}: round {number + 1} of {rounds}")
        save(found)


def chosen(said, all_names, what):
    names = said.split(",") if said else list(all_names)
    for name in names:
        if name not in all_names:
            sys.exit(f"no {what} {name}; there are {', '.join(all_names)}")
    return names


def in_own_mounts():
    """Whoever makes a mount namespace meanwhile has a copy of our mounts, which stay busy then."""
    if MARK not in os.environ:
        os.environ[MARK] = "1"
        os.execvp("unshare", ["unshare", "-m", "--propagation", "private", sys.executable,
                              *sys.argv])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows")
    parser.add_argument("--systems")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("loop devices and mounts need root")
    in_own_mounts()
    rows = {row["name"]: row for row in json.loads(run(FILE_ROW, "rows"))}
    wanted = chosen(options.systems, SYSTEMS, "system")
    images = os.environ.get("LATCHKEY_BENCH_PATH", "/dev/shm")
    missing = {}
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(tempfile.mkdtemp(prefix="compare-", dir=images))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        systems = []
        for name in wanted:
            lacks = [program for program in SYSTEMS[name].needs if not shutil.which(program)]
            if lacks:
                missing[name] = f"no {', '.join(lacks)}"
                continue
            try:
                systems.append(SYSTEMS[name](folder, SIZE))
            except (OSError, RuntimeError) as error:
                missing[name] = str(error)
                continue
            stack.callback(systems[-1].remove)
        for name, why in missing.items():
            print(f"compare: without {name}: {why}")
        options.folder.mkdir(parents=True, exist_ok=True)
        path = options.folder / "compare.json"
        known = {}
        if options.rows and path.exists():  # the others stay as they were
            known = json.loads(path.read_text())["rows"]
        told = {"missing": missing, "remarks": {system.name: system.remarks for system in systems}}
        measure(systems, [rows[name] for name in chosen(options.rows, rows, "row")],
                options.rounds, lambda line: print(f"compare: {line}", flush=True),
                lambda found: path.write_text(json.dumps(told | {"rows": known | found}, indent=1)))


if __name__ == "__main__":
    main()
