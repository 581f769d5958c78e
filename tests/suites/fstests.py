#!/usr/bin/env python3
"""fstests (https://git.kernel.org/pub/scm/fs/xfs/xfstests-dev.git) through its fuse support, on a
mounted store and beside it.

    fstests.py FOLDER [--on TARGET]... [-g GROUP]... [TEST]... --results FILE [--minutes M]

FOLDER is a checkout in which `make` was run. Targets: latchkey, latchkey-encrypted, gocryptfs; all
if nothing is said. Needs root and /dev/fuse. Test by test; what is in FILE already is not run
again, so it can be stopped and goes on. The last lines name what fails here and passes on another
target, but for EXCLUDED; exit 1 if there is any.

mount(8) finds a file system's program by /sbin/mount.fuse3: in a mount namespace of its own another
file lies there, so nothing of the machine is changed.
"""
import argparse
import contextlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from targets import LATCHKEY, PASSWORD, ext4, folder, run  # noqa: E402

SIZE = 4 << 30
SECONDS = 900  # of one test
# Why, in docs/posix.md.
EXCLUDED = {}

HELPER = """#!/bin/sh
# SOURCE DIRECTORY [FLAG]... -o OPTIONS -t TYPE, as mount(8) calls it
source=$1 directory=$2 options=
while [ $# -gt 2 ]; do
  [ "$3" = -o ] && options=$4
  shift
done
exec {command} >/dev/null
"""


# It looks for "fuse" there, and our type is fuse.latchkey.
DF = """#!/bin/sh
{df} "$@" | sed 's/fuse[.][a-z]*/fuse/'
"""


class Target:
    """Two file systems, TEST and SCRATCH, and the command that mounts one."""

    def __init__(self, kind, at, stack):
        self.kind = kind
        self.devices = []
        if kind == "gocryptfs":
            (at / "password").write_text(PASSWORD)
            for name in ("below-test", "below-scratch"):  # umount(8) shall not find a directory
                below = stack.enter_context(ext4(SIZE))
                run("gocryptfs", "-q", "-init", "-passfile", at / "password", below)
                (at / name).symlink_to(below)
                self.devices.append(name)
            self.command = (f"gocryptfs -q -nosyslog -passfile {at}/password -fsname $source "
                            f"-o allow_other,dev,suid,$options {at}/$source $directory")
            return
        words = ""
        if kind == "latchkey-encrypted":
            run(LATCHKEY, "key", "generate", at / "key")
            words = f"--key-file {at}/key"
        for name in ("test", "scratch"):
            with open(at / name, "wb") as file:
                file.truncate(SIZE)
            run(LATCHKEY, "mkfs", "-q", "-f", at / name)
            self.devices.append(at / name)
            if words:
                self.encrypt(at, name)
        self.command = (f"{LATCHKEY} mount {words} -o allow_other,dev,suid,$options "
                        "$source $directory")

    @staticmethod
    def encrypt(at, name):
        """The root itself, while it is empty."""
        (at / "mnt").mkdir(exist_ok=True)
        run(LATCHKEY, "mount", "--key-file", at / "key", at / name, at / "mnt")
        run(LATCHKEY, "policy", "set", "--key-file", at / "key", at / "mnt")
        run(LATCHKEY, "umount", at / "mnt")

    def config(self, at):
        for directory in ("TEST", "SCRATCH"):
            (at / directory).mkdir()
        test, scratch = self.devices
        return (f"export FSTYP=fuse FUSE_SUBTYP=.{self.kind.split('-')[0]}\n"
                f"export TEST_DEV={test} TEST_DIR={at}/TEST\n"
                f"export SCRATCH_DEV={scratch} SCRATCH_MNT={at}/SCRATCH\n")


def run_test(name, fstests, at):
    """{"how": passed, failed or notrun, "why", "seconds"}"""
    begun = time.monotonic()
    # The daemon is in this namespace, too, which would keep it and its mounts alive.
    script = (f"mount --bind {at}/helper $(readlink -f /sbin/mount.fuse3) && "
              f"PATH={at}:$PATH HOST_OPTIONS={at}/config ./check {name}; "
              f"umount {at}/TEST {at}/SCRATCH 2>/dev/null")
    process = subprocess.Popen(["unshare", "-m", "--propagation", "private", "sh", "-c", script],
                               cwd=fstests, text=True, errors="replace", start_new_session=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        said = process.communicate(timeout=SECONDS)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        said = process.communicate()[0] + "\n[hung]"
    seconds = round(time.monotonic() - begun, 1)
    not_run = re.search(r"\[not run\] (.*)", said)
    if not_run:
        return {"how": "notrun", "why": not_run[1], "seconds": seconds}
    if re.search(r"^Passed all 1 tests", said, re.MULTILINE):
        return {"how": "passed", "why": "", "seconds": seconds}
    return {"how": "failed", "why": said[-1500:], "seconds": seconds}


def tests_of(fstests, groups, names):
    if names:
        return names
    found = set()
    for line in (fstests / "tests/generic/group.list").read_text().splitlines():
        number, *of = line.split("#")[0].split() or [""]
        if number.isdigit() and set(of) & set(groups):
            found.add(f"generic/{number}")
    return sorted(found)


def run_on(kind, names, fstests, results, options, ends):
    wanted = [name for name in names if name not in results[kind]]
    if not wanted:
        return
    with folder() as at, contextlib.ExitStack() as stack:
        target = Target(kind, at, stack)
        (at / "config").write_text(target.config(at))
        for program, text in (("helper", HELPER.format(command=target.command)),
                              ("df", DF.format(df=shutil.which("df")))):
            (at / program).write_text(text)
            (at / program).chmod(0o755)
        for name in wanted:
            if time.monotonic() > ends:
                return
            results[kind][name] = done = run_test(name, fstests, at)
            print(f"{kind:20} {name} {done['how']} {done['seconds']} s "
                  f"{done['why'].splitlines()[0] if done['how'] == 'notrun' else ''}", flush=True)
            options.results.write_text(json.dumps(results, indent=1))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("tests", nargs="*")
    kinds = ["latchkey", "latchkey-encrypted", "gocryptfs"]
    parser.add_argument("--on", action="append", choices=kinds)
    parser.add_argument("-g", "--group", action="append")
    parser.add_argument("--results", type=pathlib.Path, required=True)
    parser.add_argument("--minutes", type=float, default=1e6)
    options = parser.parse_args()
    fstests = options.folder.resolve()
    if not (fstests / "ltp/fsx").exists():
        sys.exit(f"{fstests} has no program ltp/fsx: make")
    names = tests_of(fstests, options.group or ["quick"], options.tests)
    results = json.loads(options.results.read_text()) if options.results.exists() else {}
    ends = time.monotonic() + options.minutes * 60
    for kind in options.on or kinds:
        results.setdefault(kind, {})
        run_on(kind, names, fstests, results, options, ends)
    return report(results)


def report(results):
    def of(kind, how):
        return {name for name, done in results[kind].items() if done["how"] == how}

    for kind in results:
        print(f"{kind}: {len(results[kind])} tests, {len(of(kind, 'passed'))} passed, "
              f"{len(of(kind, 'failed'))} failed, {len(of(kind, 'notrun'))} not run")
    bad = {f"{name} on {ours}, not on {other}"
           for ours in results if ours.startswith("latchkey")
           for other in results if not other.startswith("latchkey")
           for name in (of(ours, "failed") & of(other, "passed")) - set(EXCLUDED)}
    for line in sorted(bad):
        print(f"only here: {line}")
    for kind in results:
        print(f"{kind} fails: {' '.join(sorted(of(kind, 'failed'))) or 'nothing'}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
