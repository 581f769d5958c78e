"""The demo's last part: the store mounted, a program of the machine inside while its key is
removed. main() of demo.py calls it; where FUSE cannot be had it says so."""
import contextlib
import errno
import os
import pathlib
import shutil
import subprocess
import sys

INCOMPLETE = 7  # latchkey's exit code: files are open

# Holds a file open and adds a line to it at each word that it is told.
EDITOR = """
import os, sys
with open(sys.argv[1], "a") as file:
    print("inside", flush=True)
    for line in sys.stdin:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
        print("saved", flush=True)
"""


class Editor:
    def __init__(self, path):
        self.path = path
        self.process = subprocess.Popen([sys.executable, "-c", EDITOR, path], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.answer()

    def answer(self):
        return self.process.stdout.readline().strip()

    def save(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.answer()

    def leave(self):
        self.process.stdin.close()
        self.process.wait(60)

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def why_not():
    """Nothing, or why there is no FUSE for this user."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse cannot be opened"
    if os.geteuid() != 0 and not shutil.which("fusermount3"):
        return "there is no fusermount3"
    return ""


def open_error(path):
    try:
        with open(path, "rb"):
            return "it opens"
    except OSError as error:
        return os.strerror(error.errno)


class Mounted:
    def __init__(self, latchkey, answer, device, folder, key, say, expect):
        self.latchkey, self.answer, self.device, self.key = latchkey, answer, device, key
        self.say, self.expect = say, expect
        self.at = folder / "mnt"
        self.at.mkdir()

    def run(self):
        why = why_not()
        if why:
            self.say(f"6. not mounted: {why}")
            return
        mounted = self.answer("mount", "mount", self.device.path, self.at)
        self.say(f"6. mounted for every program, served by process {mounted['pid']}")
        try:
            self.live()
            self.latchkey("umount", self.at)
        finally:
            if os.path.ismount(self.at):
                with contextlib.suppress(Exception):
                    self.latchkey("umount", self.at)
        self.expect(self.answer("check", "check", self.device.path)["clean"], "not clean")
        self.say("   unmounted and checked: clean")

    def live(self):
        self.latchkey("unlock", "--key-file", self.key, self.at)
        tree, copy = self.at / "vault/tree", self.at / "vault/copy"
        part = max((here for here in (tree / "usr/include").iterdir() if here.is_dir()),
                   key=lambda here: sum(1 for _ in here.iterdir()))
        subprocess.run(["cp", "-r", part, copy], check=True)
        subprocess.run(["diff", "-r", part, copy], check=True)
        self.say(f"   cp -r and diff -r of {part.relative_to(self.at)}: "
                 f"{sum(path.is_file() for path in copy.rglob('*'))} files, the same")
        notes = self.at / "vault/notes"
        editor = Editor(notes)
        try:
            self.lock_around(editor)
        finally:
            editor.kill()
        self.latchkey("unlock", "--key-file", self.key, self.at)
        self.expect(notes.read_text() == "before the lock\nafter it\n", "a line is missing")
        self.say("   unlocked: both lines are there")

    def lock_around(self, editor):
        self.expect(editor.save("before the lock") == "saved", "the program cannot save")
        locked = self.latchkey("lock", "--json", self.at, expect=INCOMPLETE)
        self.expect("incompletely-removed" in locked, locked)
        holder = self.answer("key_status", "key", "status", "--key-file", self.key,
                             self.at)["holders"][0]
        self.expect(holder["pid"] == editor.process.pid, holder)
        self.say(f"   locked while {holder['command']} (process {holder['pid']}) has "
                 f"{pathlib.Path(holder['path']).relative_to(self.at)} open")
        refused = open_error(editor.path)
        self.expect(refused == os.strerror(errno.ENOKEY), refused)
        self.expect("notes" not in os.listdir(self.at / "vault"), "names are still read")
        self.say(f"   a new open is refused: {refused}; names are unreadable")
        self.expect(editor.save("after it") == "saved", "what was open cannot be saved")
        editor.leave()
        state = self.answer("key_status", "key", "status", "--key-file", self.key, self.at)
        self.expect(state["state"] == "absent", state)
        self.say("   its save succeeds; when it leaves, the key is absent")
