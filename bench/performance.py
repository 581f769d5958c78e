#!/usr/bin/env python3
"""Writes the tables of docs/performance.md from what the benchmarks printed as JSON.

    build/release/bench/crypto_bench --benchmark_out=crypto.json --benchmark_out_format=json
    build/release/latchkey bench --json --extent 4K,128K IMG >bench.json
    build/release/bench/tree_bench --benchmark_out=tree.json --benchmark_out_format=json
    python3 bench/performance.py FOLDER_OF_THE_THREE

A table whose file is missing stays as it was. Only what lies between "<!-- NAME -->" and
"<!-- end -->" is replaced. A kernel that could not run is a row by name. Nothing here is computed
but ratios and units."""
import json
import pathlib
import platform
import re
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "performance.md"
SIDES = ("ours", "openssl", "libgcrypt")


def machine():
    cpuinfo = pathlib.Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.*)$", cpuinfo, re.M)
    flags = set(re.search(r"^flags\s*: (.*)$", cpuinfo, re.M).group(1).split())
    has = [name for name in ("aes", "avx2", "vaes", "vpclmulqdq", "avx512f") if name in flags]
    compiler = subprocess.run(["g++", "-dumpfullversion"], capture_output=True, text=True).stdout
    commit = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"],
                            capture_output=True, text=True).stdout.strip()
    return (f"{model.group(1) if model else platform.machine()} ({', '.join(has)}), "
            f"{len(re.findall('^processor', cpuinfo, re.M))} virtual cores, Linux "
            f"{platform.release()}, g++ {compiler.strip()}, commit {commit}")


def parse(name):
    """'xts_encrypt/backend:native/unit:512/...' as a dictionary."""
    first, *rest = [part for part in name.split("/")
                    if part != "manual_time" and not part.startswith("repeats:")]
    return {"what": first, **dict(part.split(":", 1) for part in rest if ":" in part)}


def size(count):
    count = int(count)
    return f"{count // 1048576} MiB" if count >= 1 << 20 else \
        f"{count // 1024} KiB" if count >= 1024 else f"{count} B"


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def number(value, digits=2):
    return "-" if value is None else f"{value:.{digits}f}"


def merged(benchmarks):
    """One entry for each name: of rates the best of its repetitions, of times the least, of ratios
    the median. A core that is shared with another guest for a while halves all sides alike."""
    found = {}
    for entry in benchmarks:
        if entry.get("run_type") != "aggregate":
            found.setdefault(entry["name"], []).append(entry)
    for name, entries in found.items():
        row = {"name": name}
        for counter in set.union(*map(set, entries)):
            values = [entry[counter] for entry in entries if counter in entry]
            if counter == "ratio":
                row[counter] = statistics.median(values)
            elif counter.endswith("_us"):
                row[counter] = min(values)
            elif counter.endswith(("_bytes_cycle", "_mib_s")):
                row[counter] = max(values)
        yield row


class Xts:
    def __init__(self, benchmarks, kernels):
        self.rows = {}
        for entry in benchmarks:
            at = parse(entry["name"])
            if at["what"] in ("xts_encrypt", "xts_decrypt"):
                key = (at["kernel"], at["memory"], int(at["unit"]), at["what"])
                self.rows[key] = entry
        there = {key[0] for key in self.rows}
        self.kernels = [kernel for kernel in kernels if kernel in there]
        self.units = sorted({key[2] for key in self.rows})

    def get(self, kernel, memory, unit, what, counter):
        return self.rows.get((kernel, memory, unit, what), {}).get(counter)

    def pair(self, kernel, memory, unit, counter, scale=1.0, digits=2):
        values = [self.get(kernel, memory, unit, what, counter)
                  for what in ("xts_encrypt", "xts_decrypt")]
        return " / ".join(number(value and value * scale, digits) for value in values)

    def by_unit(self, memory, counter, scale, digits, absent):
        ours, best = self.kernels, self.kernels[0]
        rows = []
        for unit in self.units:
            row = [size(unit)]
            row += [self.pair(kernel, memory, unit, "ours_" + counter, scale, digits)
                    for kernel in ours]
            row += [self.pair(best, memory, unit, f"{side}_{counter}", scale, digits)
                    for side in SIDES[1:]]
            row.append(self.pair(best, memory, unit, "ratio"))
            rows.append(row)
        head = ["unit", *ours, "OpenSSL", "libgcrypt", f"{best} to the best of them"]
        return table(head, rows) + [""] + [f"Not run: {name} ({why})." for name, why in absent]


def absent_kernels(info):
    """Kernels that this machine could not run, with the reason where one is given."""
    return [(kernel["name"], backend["reason"] or "the processor lacks its instructions")
            for backend in info["backends"] for kernel in backend["kernels"]
            if not kernel["usable"]]


def keys(benchmarks):
    rows = []
    for entry in sorted(benchmarks, key=lambda entry: entry["name"]):
        at = parse(entry["name"])
        if at["what"] in ("extent_key_derive", "hkdf_expand"):
            rows.append([at["what"], at.get("batch", "1"), number(entry["ours_us"], 3),
                         number(entry["openssl_us"], 3), number(1 / entry["ratio"], 1)])
    return table(["", "at a time", "ours, us each", "OpenSSL, us each", "times as fast"], rows)


def stored(benchmarks):
    for entry in benchmarks:
        if parse(entry["name"])["what"] == "seal_and_checksum":
            yield (f"Through the caches {number(entry['cached_mib_s'], 0)} MiB/s, past them "
                   f"{number(entry['past_caches_mib_s'], 0)}: {number(entry['ratio'])} times as "
                   "fast the first way.")


def writeback(rows):
    return table(
        ["extent", "write sealed", "clear", "ratio", "read sealed", "clear", "ratio",
         "slot hits", "misses", "evictions"],
        [[size(row["extent_bytes"]), number(row["sealed_mib_s"], 0), number(row["clear_mib_s"], 0),
          number(row["ratio"], 3), number(row["read_sealed_mib_s"], 0),
          number(row["read_clear_mib_s"], 0), number(row["read_ratio"], 3),
          *(str(row["key_slots"][name]) for name in ("hits", "misses", "evictions"))]
         for row in rows])


GROWN = {"files_in_a_directory": ("grow_us", "lookup_us", "list_us", "remove_us", "commit_us"),
         "extents_in_a_file": ("grow_us", "read_us", "overwrite_us", "commit_us")}


def grown(benchmarks, kind):
    """One row for each device and size, in the order of the run."""
    for entry in benchmarks:
        name, device, count = entry["name"].split("/")[:3]
        if name == kind:
            yield device, int(count.split(":")[1]), entry


def tree(benchmarks, kind):
    columns = GROWN[kind]
    return table(["device", "size", *(c.replace("_us", ", us") for c in columns),
                  "bytes a commit"],
                 [[device, f"{count:,}", *(number(entry[c], 1) for c in columns),
                   number(entry["commit_bytes"], 0)]
                  for device, count, entry in grown(benchmarks, kind)])


def chart(benchmarks, kind, path):
    import matplotlib
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "latchkey"
    from matplotlib import pyplot
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for column, colour in zip(GROWN[kind], ("C0", "C1", "C2", "C3", "C4")):
        for device, style in (("loop", "-"), ("memory", ":")):
            points = [(count, entry[column]) for at, count, entry in grown(benchmarks, kind)
                      if at == device]
            if points:
                axes.plot(*zip(*points), style, color=colour, marker="o", markersize=3,
                          label=f"{column.removesuffix('_us')}, {device}")
    axes.set(xscale="log", yscale="log", xlabel=kind.replace("_", " "), ylabel="us each")
    axes.grid(True, alpha=0.3)
    axes.legend(fontsize=7, ncol=2)
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
    lines = path.read_text().splitlines()
    path.write_text("".join(line.rstrip() + "\n" for line in lines))


def replace(text, name, lines):
    block = re.compile(rf"<!-- {name} -->\n.*?<!-- end -->", re.S)
    if not block.search(text):
        sys.exit(f"{PAGE.name} has no place for {name}")
    body = "\n".join(lines)
    return block.sub(lambda _: f"<!-- {name} -->\n{body}\n<!-- end -->", text)


def load(folder, name):
    path = folder / name
    return json.loads(path.read_text()) if path.exists() else None


def ciphers_and_writeback(text, crypto, bench):
    benchmarks = list(merged(crypto["benchmarks"]))
    done = subprocess.run([ROOT / "build/release/latchkey", "info", "--json"], check=True,
                          capture_output=True)
    info = json.loads(done.stdout)["info"]
    absent = absent_kernels(info)
    xts = Xts(benchmarks, [kernel["name"] for kernel in info["backends"][0]["kernels"]])
    text = replace(text, "machine", [machine() + "."])
    text = replace(text, "cache", xts.by_unit("cache", "bytes_cycle", 1, 2, absent))
    text = replace(text, "cache rate", xts.by_unit("cache", "mib_s", 1048576 / 1e9, 1, []))
    text = replace(text, "dram", xts.by_unit("dram", "mib_s", 1048576 / 1e9, 1, []))
    text = replace(text, "keys", keys(benchmarks))
    text = replace(text, "stored", stored(benchmarks))
    return replace(text, "writeback", writeback(bench["bench"]["rows"]))


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = pathlib.Path(sys.argv[1])
    crypto, bench, trees = (load(folder, name + ".json") for name in ("crypto", "bench", "tree"))
    text = PAGE.read_text()
    if crypto and bench:
        text = ciphers_and_writeback(text, crypto, bench)
    if trees:
        lines = [machine() + "."]
        for kind in GROWN:
            chart(trees["benchmarks"], kind, PAGE.parent / "results" / f"{kind}.svg")
            lines += ["", f"![{kind}](results/{kind}.svg)", "", *tree(trees["benchmarks"], kind)]
        text = replace(text, "tree", lines)
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
