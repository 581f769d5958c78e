#!/usr/bin/env bash
# soak_keys.sh MINUTES: every interleaving of the plans around a removal (tests/explore/), mode by
# mode, as many at a time as there are cores. `./run soak keys` builds first. A plan that is not
# through when its share of the time is over says so; what is wrong is told step by step, with the
# line that repeats it.
set -uo pipefail
cd "$(dirname "$(readlink -f "$0")")/../.."

minutes=${1:-60}
[[ $minutes =~ ^[1-9][0-9]*$ ]] || { echo "usage: ./run soak keys [MINUTES]" >&2; exit 1; }
jobs=${LATCHKEY_JOBS:-$(nproc)}
modes=(soft sealed safe sync freeze deny hard suspend)
program=build/release/tests/key_explore
out=build/soak
mkdir -p "$out"

plans=$("$program" --count plans)
seconds=$((minutes * 60 * jobs / (plans * ${#modes[@]})))
printf '%s\n' "${modes[@]}" |
  xargs -P "$jobs" -I MODE sh -c "$program --mode MODE --seconds $seconds >$out/keys-MODE.log 2>&1"
code=$?
for mode in "${modes[@]}"; do cat "$out/keys-$mode.log"; done
exit $code
