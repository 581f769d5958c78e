"""A session that is looked into, from outside and by itself: what scans for secrets share. Every
needle (half of a key, a state or a round key) is found while it has to be there, else the scan is
blind and the test fails. A table of what was found is printed at the end."""
import pathlib
import random
import sys
import time
import types

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "demo"))
import demo  # noqa: E402
import memory  # noqa: E402
import secrets_oracle as oracle  # noqa: E402
from cli import *  # noqa: E402,F403

WRITERS = 3
EXTENTS_EACH = 2  # a row that is read again keeps its key in a slot: few, so that none is evicted
LASTING = memory.GROUPS[:4]  # in the arena as long as they may be; the others for one call
ROWS = []


def print_rows():
    if ROWS:
        print("\n| compiler | arena | scene | needles found before | "
              "hits after: process, core, own |")
        print("|---|---|---|---|---|")
        for row in ROWS:
            print("| " + " | ".join(map(str, row)) + " |")
        sys.stdout.flush()


def threads_of(pid):
    """All of them but io_uring's workers, which stay in the kernel and come and go."""
    threads = set()
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        try:
            if not (task / "comm").read_text().startswith("iou-"):
                threads.add(int(task.name))
        except (FileNotFoundError, ProcessLookupError):
            pass
    return threads


class Scan(CliTest):
    """What the scenes share. `before` counts the needles that were found while they had to be."""
    inside = False
    options = ("--secrets", "locked")

    def setUp(self):
        super().setUp()
        if memory.gdb_missing():
            self.skipTest(memory.gdb_missing())
        self.nonces, self.directories, self.before = [], [], {}

    def begin(self, *options, **process):
        self.session = demo.Session(types.SimpleNamespace(path=str(self.image)), *self.options,
                                    own_options=options, **process)
        for step in (self.session.process.stdout.close, self.session.process.wait,
                     self.session.process.kill, self.session.process.stdin.close):
            self.addCleanup(step)
        wanted = "memfd_secret" if self.inside else "locked"
        arena = self.session("scan")["arena"]
        if self.inside and arena != wanted:
            self.skipTest("no memfd_secret: the kernel lacks it, or LATCHKEY_SECRETS=locked")
        self.assertEqual(arena, wanted)

    def say(self, *words):
        answer = self.session(*words)
        self.assertFalse(answer.get("error"), (words, answer))
        return answer

    def known(self):
        return self.key.read_bytes(), [bytes.fromhex(nonce) for nonce in self.nonces]

    def outside(self, core=True):
        """What scanners outside find: in the process, in its core."""
        master, nonces = self.known()
        directories = [bytes.fromhex(n) for n in self.directories]
        groups = oracle.needles(master, nonces) | oracle.passing_needles(master, nonces,
                                                                         directories)
        groups = {name: pieces for name, pieces in groups.items() if pieces}
        pid = self.session.process.pid
        looks = [memory.find_in_process(pid, groups)]
        self.assert_all_read(looks[0])
        if core:
            looks.append(memory.find_in_core(pid, groups, self.folder))
            for note in memory.REGISTER_NOTES:
                self.assertLessEqual(threads_of(pid), set(looks[1]["notes"].get(note, ())), note)
        return looks

    def assert_all_read(self, look):
        self.assertEqual(look["unreadable"], [memory.SECRET_MEMORY] if self.inside else [])

    def own(self):
        """What the session finds in itself: {group: (found, needles)}."""
        return {name: (group["found_now"], group["needles"])
                for name, group in self.say("scan").items() if isinstance(group, dict)}

    def assert_found(self, *groups, all_of_them=True, core=True):
        """Each needle of the groups lies in the arena, which in memfd_secret nobody sees."""
        looks = self.outside(core)
        if self.inside:
            self.assert_nothing(*looks)
            found = [self.own()]
        else:
            found = [{name: (look["found"][name], count)
                      for name, count in look["needles"].items()} for look in looks]
        for look in found:
            for group in groups:
                hit, needles = look[group]
                # The session keeps needles of extents whose keys the slots have let go.
                wanted = needles if all_of_them else len(memory.halves(
                    oracle.needles(*self.known())[group]))
                self.assertGreater(wanted, 0)
                self.assertGreaterEqual(hit, wanted, f"the scan is blind to a {group}")
                self.before[group] = max(hit, self.before.get(group, 0))

    def assert_nothing(self, *looks, planted=None):
        for look in looks:
            wanted = {name: (planted or {}).get(name, 0) for name in look["found"]}
            self.assertEqual(look["found"], wanted, look["where"])

    def assert_gone(self, scene, planted=None):
        process, core = self.outside()
        self.assert_nothing(process, core, planted=planted)
        hits = [sum(look["found"].values()) for look in (process, core)]
        if self.inside:
            own = {group: hit for group, (hit, _) in self.own().items()}
            self.assertEqual(own, {group: (planted or {}).get(group, 0) for group in own})
            hits.append(sum(own.values()))
        self.add_row(scene, sum(self.before.values()), hits)

    def add_row(self, scene, found_before, hits):
        ROWS.append((memory.compiler_of(LATCHKEY), "memfd_secret" if self.inside else "locked",
                     scene, found_before, ", ".join(map(str, hits))))

    def add_key(self):
        self.say("load", self.key)
        self.assert_found("master", core=False)  # add wipes what load brought
        self.say("add")

    def find_names(self):
        """A name's key is there for one call: copies show that a scan would find it."""
        self.directories = [self.say("names", "/vault")["nonce"]]
        self.say("plant")
        self.assert_found("name_key", core=False)
        self.say("unplant")

    def until(self, reached):
        for _ in range(3000):
            if reached(self.say("counts")):
                return
            time.sleep(0.01)
        self.fail(f"the writers do not get on: {self.say('counts')}")

    def write_for_a_while(self):
        """The nonces of the last extents."""
        self.say("go")
        enough = self.say("counts")["acknowledged"] + 20 * WRITERS
        self.until(lambda counts: counts["acknowledged"] >= enough)
        stopped = self.say("stop")
        self.assertEqual(stopped["failures"], 0, stopped)
        return self.say("maps", EXTENTS_EACH)["nonces"]

    def begin_writing(self):
        self.add_key()
        self.say("write", "/vault/log", WRITERS)
        self.say("stop")

    def remove_softly(self):
        removed = self.say("remove", "soft")
        self.assertEqual(removed["state"], "incompletely-removed")
        self.assertEqual(self.session("open", "/vault/log-0")["error"], "no_key", removed)
        return removed

    def close_last(self):
        closed = self.say("close")
        self.assertEqual((closed["state"], closed["errors"]), ("absent", []))

    def put_extents(self, count):
        """/vault/log-0 of so many extents."""
        data = random.randbytes(count * 128 * 1024)
        self.put(self.host_file("data", data), "/vault/log-0")
