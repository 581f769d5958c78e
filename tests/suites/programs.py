#!/usr/bin/env python3
"""Real programs on a mounted store, and on gocryptfs beside it.

    programs.py --results FILE [--on TARGET]... [CASE]...

Cases: git, sqlite, build, usr_share, fio, fsx; all if nothing is said. Targets: latchkey,
latchkey-encrypted, gocryptfs; the first two if nothing is said. Needs root and /dev/fuse. Each case
has a store of its own, prints a line of what was seen and is kept in FILE; what has passed there is
not run again, and fsx goes on where it was stopped. Exit 1 if one failed. fsx comes from a folder
of fstests in which `make` was run: --fstests.
"""
import argparse
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import fsx  # noqa: E402
import transactions  # noqa: E402
from places import KINDS, place  # noqa: E402
from targets import LATCHKEY, run  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
SIZE = 8 << 30
FIO = {
    "buffered": "--ioengine=psync --rw=write --bs=128k --fsync_on_close=1",
    "random": "--ioengine=psync --rw=randwrite --bsrange=512-256k --end_fsync=1",
    "direct": "--ioengine=libaio --direct=1 --rw=randwrite --bsrange=4k-128k --iodepth=16 "
              "--serialize_overlap=1",
    "io_uring": "--ioengine=io_uring --rw=randwrite --bs=16k --iodepth=32",
    "mmap": "--ioengine=mmap --rw=randwrite --bs=4k --fsync=512",
    "synced": "--ioengine=psync --rw=randwrite --bsrange=1k-64k --fdatasync=16 --fsync_on_close=1",
    "files": "--ioengine=psync --rw=randwrite --bsrange=512-16k --nrfiles=300 --openfiles=20 "
             "--fsync_on_close=1",
}


class Skipped(Exception):
    pass


def need(*programs):
    """Each is a program, or program=package where the package is named otherwise."""
    for program, _, package in (word.partition("=") for word in programs):
        if not shutil.which(program):
            raise Skipped(f"no {program} here: package {package or program}")


def git(here, options, _state, _save):
    need("git")
    clone = here.work / "clone"
    run("git", "clone", "-q", "--no-local", "--no-hardlinks", options.repository, clone)

    def look():
        run("git", "-C", clone, "fsck", "--full", "--strict", "--no-progress")
        changed = run("git", "-C", clone, "status", "--porcelain")
        if changed:
            raise ValueError(f"git status: {changed[:500]}")

    look()
    here.again()
    look()
    commits = run("git", "-C", clone, "rev-list", "--first-parent", "HEAD").split()
    for commit in (commits[len(commits) // 2], commits[-1], commits[0]):
        run("git", "-C", clone, "checkout", "-q", "--detach", commit)
    look()
    run("git", "-C", clone, "gc", "-q", "--prune=now")
    here.again()
    look()
    packed = run("git", "-C", clone, "count-objects", "-v").split()[5]
    files = len(run("git", "-C", clone, "ls-files").splitlines())
    return (f"{options.repository.name}: {packed} objects, {files} files; fsck --full "
            "and status clean at once, after a mount, after three checkouts, after gc and a mount")


def sqlite(here, options, _state, _save):
    return transactions.case(here, options.rounds)


def build(here, options, _state, _save):
    need("git", "cmake", "ninja=ninja-build", "g++")
    source = here.work / "latchkey"
    binary = source / "build/release"
    run("git", "clone", "-q", "--no-local", ROOT, source)
    cached = shutil.which("ccache") is not None
    environment = os.environ | {"CCACHE_BASEDIR": str(source), "CCACHE_NOHASHDIR": "1"}
    words = ["-DCMAKE_CXX_COMPILER_LAUNCHER=ccache"] if cached else []
    run("cmake", "--preset", "release", *words, cwd=source, env=environment)
    run("ninja", "-C", binary, "-j", options.jobs, "latchkey", env=environment)
    here.again()
    said = run("ninja", "-C", binary, "latchkey", env=environment)
    if "no work to do" not in said:
        raise ValueError(f"after a mount, ninja builds again: {said[-500:]}")
    built = binary / "latchkey"
    store = here.work / "inner"
    run(built, "mkfs", "-q", "--size", "256M", store)
    run(built, "put", "-q", "-r", source / "docs", f"{store}:/docs")
    run(built, "check", "-q", "--data", store)
    run(built, "get", "-q", "-r", f"{store}:/docs", here.work / "docs")
    run("diff", "-r", source / "docs", here.work / "docs")
    objects = len(list(binary.rglob("*.o")))
    return (f"cmake and ninja latchkey: {objects} objects, "
            f"{built.stat().st_size >> 20} MiB of program{' (through ccache)' if cached else ''}; "
            "ninja has nothing to do after a mount; it made, filled and checked a store in there")


def compare(source, copy):
    run("diff", "-r", "--no-dereference", source, copy)
    said = run("rsync", "-naXc", "--delete", "--itemize-changes", f"{source}/", f"{copy}/")
    if said:
        raise ValueError(f"rsync -naXc {source} {copy}: {said[:1000]}")


def usr_share(here, options, _state, _save):
    need("tar", "rsync", "diff=diffutils")
    source = options.tree.resolve()
    copy, second = here.work / source.name, here.work / "second"
    run("sh", "-ec", 'tar -C "$0" -cf - "$1" | tar -C "$2" -xpf -', source.parent, source.name,
        here.work)
    compare(source, copy)
    marked = [path for path in sorted(copy.rglob("*"))[::50] if not path.is_symlink()]
    for number, path in enumerate(marked):
        os.setxattr(path, "user.number", str(number).encode() * (number % 300 + 1))
    run("rsync", "-aX", f"{copy}/", f"{second}/")
    here.again()
    compare(copy, second)
    run("diff", "-r", "--no-dereference", source, second)
    for number, path in enumerate(marked):
        path = second / path.relative_to(copy)
        if os.getxattr(path, "user.number") != str(number).encode() * (number % 300 + 1):
            raise ValueError(f"{path}: another user.number")
    names = [path for path in second.rglob("*")]
    size = sum(path.lstat().st_size for path in names if path.is_file() and not path.is_symlink())
    return (f"{source}: {len(names)} names, {size >> 20} MiB by tar, again by rsync -aX with "
            f"{len(marked)} attributes; diff -r and rsync -naXc say nothing, after a mount neither")


def fio(here, options, _state, _save):
    need("fio")
    written, read = 0, 0
    for again in (False, True):
        for name, words in FIO.items():
            said = json.loads(run(
                "fio", f"--name={name}", f"--directory={here.work}", "--output-format=json",
                f"--size={options.fio_size}", "--verify=crc32c", "--verify_fatal=1",
                "--randseed=7", "--verify_state_save=0", *words.split(),
                *(["--verify_only=1"] if again else ["--do_verify=1"]), cwd=here.at))["jobs"][0]
            written += said["write"]["io_bytes"]
            read += said["read"]["io_bytes"]
            if said["error"] or not said["read"]["io_bytes"]:
                raise ValueError(f"fio {name}: error {said['error']}, read "
                                 f"{said['read']['io_bytes']} bytes")
        if not again:
            here.again()
    return (f"{' '.join(FIO)}: {written >> 20} MiB written, {read >> 20} MiB read back, crc32c as "
            "written, half of it after a mount")


def fsx_case(here, options, state, save):
    if options.fstests is None or not (options.fstests / "ltp/fsx").exists():
        raise Skipped("no ltp/fsx: --fstests FOLDER, in which `make` was run")
    return fsx.case(here, options, state, save)


CASES = {"git": git, "sqlite": sqlite, "build": build, "usr_share": usr_share, "fio": fio,
         "fsx": fsx_case}


def run_case(kind, name, options, state, save):
    begun = time.monotonic()
    state.pop("how", None)
    try:
        if kind == "gocryptfs":
            need("gocryptfs", "mkfs.ext4=e2fsprogs")
        with place(kind, SIZE) as here:
            state["seen"] = CASES[name](here, options, state, save)
        state["how"] = "passed"
    except Skipped as reason:
        state |= {"how": "skipped", "seen": str(reason)}
    except subprocess.CalledProcessError as error:
        words = " ".join(map(str, error.cmd))
        state |= {"how": "failed", "seen": f"{words}: exit {error.returncode}: "
                                           f"{error.stdout[-1500:]}{error.stderr[-1500:]}"}
    except (ValueError, OSError, RuntimeError, subprocess.TimeoutExpired) as error:
        state |= {"how": "failed", "seen": f"{type(error).__name__}: {error}"}
    state["seconds"] = round(state.get("seconds", 0) + time.monotonic() - begun, 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--on", action="append", choices=KINDS)
    parser.add_argument("--results", type=pathlib.Path, required=True)
    parser.add_argument("--repository", type=pathlib.Path, default=ROOT, help="that git clones")
    parser.add_argument("--tree", type=pathlib.Path, default="/usr/share")
    parser.add_argument("--fstests", type=pathlib.Path)
    parser.add_argument("--operations", type=int, default=1_000_000, help="of fsx")
    parser.add_argument("--piece", type=int, default=50_000, help="operations under one seed")
    parser.add_argument("--seed", type=int, default=1, help="the first one of fsx")
    parser.add_argument("--rounds", type=int, default=10, help="of sqlite, of each kind")
    parser.add_argument("--fio-size", default="192m", help="of each fio job")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="of the build")
    options = parser.parse_args()
    if unknown := set(options.cases) - set(CASES):
        parser.error(f"no case {' '.join(unknown)}")
    if not pathlib.Path(LATCHKEY).exists():
        sys.exit(f"no {LATCHKEY}: ./run build")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what is mounted goes
    results = json.loads(options.results.read_text()) if options.results.exists() else {}

    def save():
        fresh = options.results.with_suffix(".new")
        fresh.write_text(json.dumps(results, indent=1))
        fresh.rename(options.results)

    failed = 0
    for kind in options.on or KINDS[:2]:
        for name in options.cases or CASES:
            state = results.setdefault(kind, {}).setdefault(name, {})
            if state.get("how") != "passed":
                run_case(kind, name, options, state, save)
                save()
            failed += state["how"] == "failed"
            print(f"{kind}: {name} {state['how']} in {state['seconds']} s: {state['seen']}",
                  flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
