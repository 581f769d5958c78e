#!/usr/bin/env python3
"""pjdfstest (https://github.com/pjd/pjdfstest) on a mounted store and beside it.

    pjdfstest.py FOLDER [--on TARGET]... [--only PART] [--results FILE]

FOLDER is a checkout in which `autoreconf -ifs && ./configure && make pjdfstest` was run. Targets:
latchkey, latchkey-encrypted, gocryptfs, ext4; the first two and gocryptfs if nothing is said. Needs
root and /dev/fuse. What is in FILE already is not run again. The last lines name what fails here
and passes on another target, but for EXCLUDED; exit 1 if there is any.
"""
import argparse
import json
import pathlib
import re
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from targets import TARGETS  # noqa: E402

SIZE = 1 << 30
LINE = re.compile(r"^(not )?ok (\d+)(.*)$", re.MULTILINE)
# Why, in docs/posix.md.
EXCLUDED = {
    "rename/24": "directories have one link, as on Btrfs",
}


def run_test(script, work):
    """{number: "ok", "todo", or what it said} of one script, run in a directory of its own."""
    place = work / "here"
    place.mkdir()
    done = subprocess.run(["sh", str(script)], cwd=place, text=True, errors="replace",
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    subprocess.run(["rm", "-rf", str(place)], check=True)
    planned = re.search(r"^1\.\.(\d+)", done.stdout, re.MULTILINE)
    found = {str(number): "missing" for number in range(1, int(planned[1] if planned else 0) + 1)}
    for failed, number, rest in LINE.findall(done.stdout):
        found[number] = ("todo" if "# todo" in rest.lower() else
                         rest.strip()[:150] or "not ok" if failed else "ok")
    return found


def name_of(script, folder):
    return str(script.relative_to(folder / "tests").with_suffix(""))


def run_on(target, scripts, folder, results, save):
    wanted = [script for script in scripts if name_of(script, folder) not in results]
    if not wanted:
        return
    with TARGETS[target](SIZE) as work:
        work.chmod(0o755)
        for script in wanted:
            results[name_of(script, folder)] = run_test(script, work)
            save()


def failures(results):
    """{test: what it said}"""
    return {f"{name} {number}": how for name, tests in results.items()
            for number, how in tests.items() if how not in ("ok", "todo")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--on", action="append", choices=sorted(TARGETS))
    parser.add_argument("--only", default="", help="scripts whose name has this in it")
    parser.add_argument("--results", type=pathlib.Path)
    options = parser.parse_args()
    folder = options.folder.resolve()
    if not (folder / "pjdfstest").exists():
        sys.exit(f"{folder} has no program pjdfstest: autoreconf -ifs && ./configure && make")
    scripts = [script for script in sorted((folder / "tests").rglob("*.t"))
               if options.only in name_of(script, folder)]
    targets = options.on or ["latchkey", "latchkey-encrypted", "gocryptfs"]
    results = {}
    if options.results and options.results.exists():
        results = json.loads(options.results.read_text())

    def save():
        if options.results:
            options.results.write_text(json.dumps(results, indent=1))

    for target in targets:
        run_on(target, scripts, folder, results.setdefault(target, {}), save)
        every = [how for tests in results[target].values() for how in tests.values()]
        print(f"{target}: {len(results[target])} scripts, {len(every)} tests, "
              f"{every.count('ok')} passed, {len(failures(results[target]))} failed, "
              f"{every.count('todo')} expected to fail", flush=True)
        for name, said in failures(results[target]).items():
            print(f"  failed: {name} {said}")
    return report(targets, results)


def report(targets, results):
    ours = [target for target in targets if target.startswith("latchkey")]
    others = [target for target in targets if not target.startswith("latchkey")]
    bad = set()
    for target in ours:
        for other in others:
            bad |= {f"{name} on {target}, not on {other}"
                    for name in failures(results[target]).keys() - failures(results[other]).keys()
                    if name.split()[0] not in EXCLUDED}
    for line in sorted(bad):
        print(f"only here: {line}")
    print(f"pjdfstest: {len(bad)} fail here and pass elsewhere, without "
          f"{', '.join(f'{name} ({why})' for name, why in EXCLUDED.items())}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
