#!/usr/bin/env python3
"""Puts what bench/compare.py measured into docs/performance.md: tables, a chart, remarks.

    compare_report.py FOLDER     has compare.json

Rates are medians of the rounds; behind each the least and the largest as parts of it."""
import json
import pathlib
import re
import statistics
import sys

from performance import PAGE, machine, number, replace, table

MIB = 1 << 20
PEERS = ("gocryptfs", "securefs")
NULL, DEVICE = "null FUSE", "device"
SYNCED = ("synced_write", "synced_create")  # the device is a limit for who syncs each
WHAT = {"sequential_write": "new file, 1 MiB a write, one fsync, MiB/s",
        "sequential_read": "the same read cold, MiB/s",
        "direct_write": "new file, 1 MiB a write, O_DIRECT, MiB/s",
        "direct_random_write": "4 KiB at random places, O_DIRECT, depth 32, writes/s",
        "direct_random_read": "the same read cold, reads/s",
        "random_write": "4 KiB at random places, one fsync, writes/s",
        "synced_write": "4 KiB at random places, fsync after each, writes/s",
        "synced_create": "new file of 4 KiB, fsync, each, files/s",
        "small_create": "new files of 4 KiB, one syncfs, files/s",
        "small_read": "those read cold, files/s",
        "copy": "copy_file_range of 256 MiB, fsync, MiB/s"}


class Cell:
    """One system's rounds of one row."""

    def __init__(self, rounds):
        per = MIB if rounds[0]["bytes"] >= MIB * rounds[0]["operations"] else None
        rates = [(one["bytes"] / per if per else one["operations"]) * 1e9 / one["ns"]
                 for one in rounds]
        self.rate = statistics.median(rates)
        self.spread = (min(rates) / self.rate, max(rates) / self.rate)
        moved = rounds[0]["bytes"]
        self.written = statistics.median(one["written"] for one in rounds) / moved
        self.cpu = statistics.median(one["cpu"] for one in rounds) * 1e9 / moved

    def text(self):
        low, high = self.spread
        return f"{number(self.rate, 0)} ({number(low)} to {number(high)})"


def cells(told):
    return {row: {name: Cell(rounds) for name, rounds in found.items() if isinstance(rounds, list)}
            for row, found in told["rows"].items()}


def ratio(row, name, others):
    best = max((row[other].rate for other in others if other in row), default=None)
    return number(row[name].rate / best) if best and name in row else "-"


def limit(name, row):
    """How many times the better peer any mount could be here, or nothing."""
    rates = [row[of].rate for of in ((NULL, DEVICE) if name in SYNCED else (NULL,)) if of in row]
    best = max((row[peer].rate for peer in PEERS if peer in row), default=None)
    return number(min(rates) / best) if best and rates else "-"


def lines(told):
    all_cells = cells(told)
    names = list(dict.fromkeys(name for row in all_cells.values() for name in row))
    rows = [[WHAT[row], *(cell[name].text() if name in cell else "-" for name in names),
             ratio(cell, "latchkey", PEERS), limit(row, cell),
             ratio(cell, "latchkey", ("ext4",))]
            for row, cell in all_cells.items()]
    yield from table(["", *names, "mount to the better of gocryptfs, securefs",
                      "the limit to the same", "mount to ext4"], rows)
    yield ""
    yield ("Bytes that the device was written for each byte, then processor seconds of the whole "
           "machine a GB:")
    yield ""
    yield from table(["", *names],
                     [[row, *(f"{number(cell[name].written)}, {number(cell[name].cpu)}"
                              if name in cell else "-" for name in names)]
                      for row, cell in all_cells.items()])
    yield ""
    yield from remarks(told)
    yield ""
    yield "![compare](results/compare.svg)"


def remarks(told):
    for name, why in told["missing"].items():
        yield f"- {name} was not there: {why}."
    for name, of in told["remarks"].items():
        for row, what in of.items():
            yield f"- {name}, {row}: {what}."
    for row, found in told["rows"].items():
        for name, rounds in found.items():
            if not isinstance(rounds, list):
                why = re.sub(r"[^ ]*/(?=bench/)", "", rounds["error"].strip().splitlines()[-1])
                yield f"- {name}, {row}: did not run ({why})."


def chart(told, path):
    import matplotlib
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "latchkey"
    from matplotlib import pyplot
    all_cells = cells(told)
    names = list(dict.fromkeys(name for row in all_cells.values() for name in row
                               if name != "ext4"))
    rows = [row for row in all_cells if "ext4" in all_cells[row]]
    figure, axes = pyplot.subplots(figsize=(7, 0.6 * len(rows) + 1))
    for at, name in enumerate(names):
        points = [(all_cells[row][name].rate / all_cells[row]["ext4"].rate, place)
                  for place, row in enumerate(rows) if name in all_cells[row]]
        axes.plot(*zip(*points), "o" if name in ("latchkey", "library") else "x",
                  color=f"C{at}", label=name, markersize=6)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set(xscale="log", xlabel="times ext4's rate", yticks=range(len(rows)),
             yticklabels=[row.replace("_", " ") for row in rows])
    axes.invert_yaxis()
    axes.grid(True, axis="x", alpha=0.3)
    axes.legend(fontsize=7)
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
    text = path.read_text().splitlines()
    path.write_text("".join(line.rstrip() + "\n" for line in text))


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    told = json.loads((pathlib.Path(sys.argv[1]) / "compare.json").read_text())
    chart(told, PAGE.parent / "results" / "compare.svg")
    text = replace(PAGE.read_text(), "compare", [machine() + ".", "", *lines(told)])
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
