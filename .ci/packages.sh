# Debian 12 packages by purpose; `run` sources this. A new dependency is one word in one line here.
packages_build="g++ cmake ninja-build pkg-config liburing-dev libkcapi-dev libfmt-dev libgtest-dev
  libbenchmark-dev libcli11-dev nlohmann-json3-dev libssl-dev libisal-dev libxxhash-dev
  libblkid-dev libfuse3-dev"
packages_demo="python3 util-linux fuse3"
packages_test="python3 python3-cryptography util-linux e2fsprogs gdb valgrind fuse3
  xfsprogs"
packages_lint="clang-19 clang-tidy-19 clang-format-19"
packages_fuzz="clang-19 libclang-rt-19-dev"
packages_guest="qemu-system-x86 busybox-static cpio kmod python3"
packages_performance="libgcrypt20-dev python3 git e2fsprogs python3-matplotlib"
packages_compare="gocryptfs securefs btrfs-progs e2fsprogs xfsprogs util-linux"
packages_ci="git"  # the seeded bugs are patches

# packages_need PACKAGE...: prints and installs what is missing, as root or through sudo; without
# either it prints the one line to run and stops. Where there is no dpkg the build finds out.
packages_need() {
  command -v dpkg-query >/dev/null || return 0
  local missing=() package
  for package in "$@"; do
    dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^.i' ||
      missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return 0

  local apt=(apt-get -y -q -o DPkg::Lock::Timeout=300 --no-install-recommends)
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    if ! sudo -n true 2>/dev/null; then
      echo "run: packages are missing, and there is no right to install them. As root:" >&2
      echo "apt-get install -y --no-install-recommends ${missing[*]}" >&2
      exit 1
    fi
    as_root=(sudo -n)
  fi
  as_root+=(env DEBIAN_FRONTEND=noninteractive)
  echo "run: installing ${missing[*]}"
  if ! compgen -G '/var/lib/apt/lists/*_Packages*' >/dev/null ||
     ! "${as_root[@]}" "${apt[@]}" install "${missing[@]}" </dev/null; then
    "${as_root[@]}" apt-get -q update </dev/null
    "${as_root[@]}" "${apt[@]}" install "${missing[@]}" </dev/null
  fi
}
