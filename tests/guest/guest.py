#!/usr/bin/env python3
"""Runs test programs on Debian's own kernel in qemu, where this machine's kernel lacks something:
libkcapi's tests need AF_ALG. Exit 0: each program ran tests there, all passed, and none was
skipped. 77: no guest can be made here, and why. Needs qemu-system-x86, busybox-static, kmod, cpio
and Debian's package archive.

    tests/guest/guest.py GTEST_FILTER PROGRAM...
"""
import gzip
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "guest"
KERNEL = "linux-image-cloud-amd64"
MODULES = ("algif_skcipher", "xts", "cbc", "ecb", "aesni_intel", "crypto_user")
SKIPPED = 77
STEP_SECONDS, BOOT_SECONDS = 180, 300

INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
for module in $(cat /modules.list); do insmod /modules/$module || echo "guest: no $module"; done
echo "guest: Linux $(uname -r)"
cd /tmp
{runs}
poweroff -f
"""
RUN = """echo "guest: runs {program.name}"
{program} --gtest_color=no --gtest_filter='{filter}'
echo "guest: exit $?"
"""


class NoGuest(Exception):
    pass


def output_of(*command, cwd=None):
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, cwd=cwd,
                              timeout=STEP_SECONDS).stdout
    except FileNotFoundError:
        raise NoGuest(f"there is no {command[0]}") from None
    except subprocess.TimeoutExpired:
        raise NoGuest(f"{' '.join(map(str, command))}: took too long") from None
    except subprocess.CalledProcessError as failure:
        last = (failure.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise NoGuest(f"{' '.join(map(str, command))}: {last}") from None


def kernel():
    """Debian's kernel, unpacked and not installed: its root folder and version."""
    tree = WORK / "kernel"
    if not (tree / "complete").exists():
        shutil.rmtree(tree, ignore_errors=True)
        tree.mkdir(parents=True)
        depends = output_of("apt-cache", "depends", KERNEL)
        package = re.search(r"Depends: (linux-image-\S+)", depends)
        if not package:
            raise NoGuest(f"the package archive has no {KERNEL}")
        output_of("apt-get", "download", package[1], cwd=tree)
        (archive,) = tree.glob("*.deb")
        output_of("dpkg-deb", "-x", archive, tree)
        archive.unlink()
        (tree / "complete").touch()
    (version,) = (path.name for path in (tree / "lib" / "modules").iterdir())
    depmod = shutil.which("depmod", path="/usr/sbin:/sbin:/usr/bin") or "depmod"
    output_of(depmod, "-b", tree, version)
    return tree, version


def modules(tree, version):
    """Files of MODULES and of what they need, in the order in which they must be loaded."""
    modprobe = shutil.which("modprobe", path="/usr/sbin:/sbin:/usr/bin") or "modprobe"
    files = []
    for module in MODULES:
        shown = output_of(modprobe, "-d", tree, "-S", version, "--show-depends", module)
        for line in shown.splitlines():
            if line.startswith("insmod") and line.split()[1] not in files:
                files.append(line.split()[1])
    return [pathlib.Path(file) for file in files]


def copy_into(root, file):
    target = root / str(file).lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, target)


def initramfs(programs, filter_, tree, version):
    root = WORK / "root"
    shutil.rmtree(root, ignore_errors=True)
    for folder in ("bin", "proc", "sys", "dev", "tmp", "modules"):
        (root / folder).mkdir(parents=True)
    busybox = shutil.which("busybox", path="/bin:/usr/bin")
    if not busybox:
        raise NoGuest("there is no busybox")
    shutil.copy(busybox, root / "bin" / "busybox")
    loaded = modules(tree, version)
    for module in loaded:
        shutil.copy(module, root / "modules")
    (root / "modules.list").write_text("\n".join(module.name for module in loaded) + "\n")
    for program in programs:
        copy_into(root, program)
        for library in re.findall(r"(/\S+) \(0x", output_of("ldd", program)):
            copy_into(root, library)
    for vectors in (ROOT / "tests" / "vectors").rglob("*.txt"):
        copy_into(root, vectors)
    init = root / "init"
    runs = "\n".join(RUN.format(program=program, filter=filter_) for program in programs)
    init.write_text(INIT.format(runs=runs))
    init.chmod(0o755)
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    try:
        packed = subprocess.run(["cpio", "-o", "-H", "newc", "--quiet"], input=names.encode(),
                                check=True, capture_output=True, cwd=root).stdout
    except FileNotFoundError:
        raise NoGuest("there is no cpio") from None
    image = WORK / "initramfs.gz"
    image.write_bytes(gzip.compress(packed, 1))
    return image


def boot(tree, image):
    (linux,) = (tree / "boot").glob("vmlinuz-*")
    command = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot",
               "-display", "none", "-serial", "stdio", "-machine", "q35",
               "-accel", "tcg,thread=multi", "-cpu", "max", "-m", "1G", "-smp", "2",
               "-kernel", linux, "-initrd", image, "-append", "console=ttyS0 panic=-1 quiet"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, timeout=BOOT_SECONDS)
    except FileNotFoundError:
        raise NoGuest("there is no qemu-system-x86_64") from None
    return done.stdout.decode(errors="replace").replace("\r", "")


def main():
    filter_, *programs = sys.argv[1:]
    programs = [pathlib.Path(program).resolve() for program in programs]
    try:
        tree, version = kernel()
        image = initramfs(programs, filter_, tree, version)
        said = boot(tree, image)
    except NoGuest as why:
        print(f"guest: skipped: {why}")
        return SKIPPED
    print(said[said.find("guest: "):].rstrip())
    passed = [int(count) for count in re.findall(r"\[  PASSED  \] (\d+) test", said)]
    good = said.count("guest: exit 0\n") == len(passed) == len(programs) and all(passed)
    if good and "[  SKIPPED ]" not in said:
        return 0
    print("guest: FAILED" + (": something was skipped there" if good else ""))
    return 1


if __name__ == "__main__":
    sys.exit(main())
