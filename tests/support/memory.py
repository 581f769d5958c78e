"""Looks for secrets in another process: in all of its mappings, and in a core of it that gdb makes
with excluded mappings included, where the notes hold the registers of each thread."""
import json
import os
import pathlib
import shutil
import subprocess
import unittest

TOOL = pathlib.Path(os.path.abspath(os.environ.get("LATCHKEY_TOOLS", "build/release/tests")),
                    "needle_tool")
GROUPS = ("master", "hkdf_state", "extent_key", "round_key", "name_key")  # the session's
REGISTER_NOTES = ("NT_PRSTATUS", "NT_FPREGSET", "NT_X86_XSTATE")


def compiler_of(binary):
    """The compiler that a binary names; a binary of clang's also names the one of its library."""
    data = pathlib.Path(binary).read_bytes()
    for mark, name in ((b"clang version ", "clang"), (b"GCC: (", "g++")):
        at = data.find(mark)
        if at >= 0:
            text = data[at + len(mark):data.index(b"\0", at)].decode()
            return f"{name}-{text.split(') ')[-1].split('.')[0]}"
    return "unknown"


def halves(pieces):
    """Needles of eight bytes: half of a round key, of a lane, of what is cut in two by chance."""
    return sorted({piece[i:i + 8] for piece in pieces for i in range(0, len(piece), 8)})


def _find(groups, *words):
    lines = "".join(f"{group} {needle.hex()}\n" for group, pieces in groups.items()
                    for needle in halves(pieces))
    done = subprocess.run([TOOL, "find", *map(str, words)], input=lines, text=True,
                          capture_output=True)
    if done.returncode != 0:
        raise unittest.SkipTest(done.stderr.strip())
    return json.loads(done.stdout)


def find_in_process(pid, groups):
    return _find(groups, "pid", pid)


def gdb_missing():
    """Why no core can be made here, or nothing."""
    return None if shutil.which("gdb") else "there is no gdb (Debian package gdb)"


def find_in_core(pid, groups, folder):
    core = pathlib.Path(folder, f"core.{pid}")
    done = subprocess.run(
        ["gdb", "-nx", "-q", "-batch", "-readnever", "-iex", "set auto-load no",
         "-iex", "set debuginfod enabled off", "-ex", "set dump-excluded-mappings on",
         "-ex", "set use-coredump-filter off", "-p", str(pid), "-ex", f"gcore {core}"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if not core.exists():
        raise unittest.SkipTest(f"gdb makes no core here: {done.stderr.strip()[-300:]}")
    try:
        return _find(groups, "core", core)
    finally:
        core.unlink()


class Storm:
    """SIGUSR1 to every thread of a process, as fast as it can."""

    def __init__(self, pid):
        self.process = subprocess.Popen([TOOL, "storm", str(pid)], stdin=subprocess.PIPE)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.stdin.close()
        self.process.wait()
