#!/usr/bin/env python3
"""SQLite on a place, with kill -9 of the program and of the daemon below it. Run as a program it is
the writer: transactions.py FILE JOURNAL_MODE prints the number of each transaction once SQLite has
said that it is durable."""
import hashlib
import os
import random
import sqlite3
import subprocess
import sys
import time

# With FULL, SQLite does not sync the unlinking of a journal: after a power failure, which is what a
# daemon's kill is to a store, the last transaction may be rolled back.
MODES = {"DELETE": "EXTRA", "WAL": "FULL"}


def data_of(number, row):
    seed = hashlib.sha256(f"{number} {row}".encode()).digest()
    return seed * random.Random(seed).randrange(1, 400)


def write(path, mode):
    """Rows come, the one of five transactions before is replaced, and a counter follows."""
    base = sqlite3.connect(path, isolation_level=None, timeout=30)
    base.execute(f"PRAGMA journal_mode={mode}")
    base.execute(f"PRAGMA synchronous={MODES[mode]}")
    base.execute("PRAGMA wal_autocheckpoint=50")
    base.execute("CREATE TABLE IF NOT EXISTS rows(number, row, of, data, PRIMARY KEY(number, row))")
    base.execute("CREATE TABLE IF NOT EXISTS counter(value)")
    number = base.execute("SELECT coalesce(max(number), 0) FROM rows").fetchone()[0]
    if number == 0:
        base.execute("INSERT INTO counter SELECT 0 WHERE NOT EXISTS (SELECT * FROM counter)")
    while True:
        number += 1
        count = random.randrange(1, 12)
        base.execute("BEGIN IMMEDIATE")
        for row in range(count):
            base.execute("INSERT INTO rows VALUES(?, ?, ?, ?)",
                         (number, row, count, data_of(number, row)))
        base.execute("UPDATE rows SET data = ? WHERE number = ? AND row = 0",
                     (data_of(number - 5, -1), number - 5))
        base.execute("UPDATE counter SET value = ?", (number,))
        base.execute("COMMIT")
        # SQLite takes a directory that it cannot open for one that needs no sync, so what it says
        # counts only if the daemon has not died since the journal was unlinked.
        os.statvfs(path)
        print(number, flush=True)


def wrong(path, acknowledged):
    """What is not as it was acknowledged, up to that number; nothing if all is."""
    base = sqlite3.connect(path, timeout=30)
    said = base.execute("PRAGMA integrity_check").fetchall()
    if said != [("ok",)]:
        return f"integrity_check: {said[:5]}"
    last = base.execute("SELECT value FROM counter").fetchone()[0]
    if last < acknowledged:
        return f"{acknowledged} was acknowledged, the last one is {last}"
    there = {}
    for number, row, count, data in base.execute("SELECT * FROM rows"):
        replaced = row == 0 and number <= last - 5
        if data != data_of(number, -1 if replaced else row):
            return f"row {number}/{row} has other data"
        there.setdefault(number, [count, 0])[1] += 1
    base.close()
    if sorted(there) != list(range(1, last + 1)):
        return f"transactions are missing below {last}"
    broken = [number for number, (count, found) in there.items() if count != found]
    return f"transactions in part: {broken[:5]}" if broken else ""


def round_of(here, path, mode, victim):
    """(transactions acknowledged in this round, what is wrong)"""
    writer = subprocess.Popen([sys.executable, __file__, str(path), mode], text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    first = writer.stdout.readline()
    time.sleep(random.uniform(0.05, 1.5))
    if victim == "daemon":
        here.kill()
    else:
        writer.kill()
    lines = [first, *writer.stdout.read().split()]
    try:
        writer.wait(60)  # of the dead mount it gets errors
    except subprocess.TimeoutExpired:
        writer.kill()
        return 0, "the program stands still though the daemon is dead"
    if victim == "daemon":
        here.mount()
    if not first:
        return 0, "the writer did nothing"
    acknowledged = int(lines[-1])
    return acknowledged - int(first) + 1, wrong(path, acknowledged)


def case(here, rounds):
    """What was seen of `rounds` rounds of each kind; ValueError with what is wrong."""
    done, total = 0, 0
    for mode in MODES:
        path = here.work / f"{mode}.db"
        for number in range(2 * rounds):
            victim = ("program", "daemon")[number % 2]
            seen, why = round_of(here, path, mode, victim)
            if why:
                raise ValueError(f"{mode}, kill -9 of the {victim}, round {number}: {why}")
            done, total = done + 1, total + seen
    return (f"{done} kills, half of the daemon, journals DELETE (synchronous=EXTRA) and WAL "
            f"(FULL): {total} transactions acknowledged, all there, integrity_check ok")


if __name__ == "__main__":
    write(sys.argv[1], sys.argv[2])
