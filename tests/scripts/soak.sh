#!/usr/bin/env bash
# soak.sh MINUTES: a million random cases of each cipher kernel against OpenSSL; every test again
# and again with new seeds, with torture of every mode, some thousand schedules of the simulator and
# two minutes of crash states (which go on where the soak before ended) after each round; then the
# fuzz targets in turn with the last third of the time, ten minutes each. `./run soak` builds first.
# A failure prints the command that repeats it and does not end the soak; at the end comes a
# summary, and 1 if anything failed.
set -uo pipefail
cd "$(dirname "$(readlink -f "$0")")/../.."

minutes=${1:-120}
[[ $minutes =~ ^[1-9][0-9]*$ ]] || { echo "usage: ./run soak [MINUTES]" >&2; exit 1; }
jobs=${LATCHKEY_JOBS:-$(nproc)}
modes="soft sealed safe sync freeze deny hard suspend"
torture_seconds=15
fuzz_seconds_max=600     # then from the seeds again, so that a corpus does not fill the memory
fuzz_targets=(open repair calls control)
latchkey=build/release/latchkey
out=build/soak
image=$out/store.img

mkdir -p "$out"
rm -f "$out"/*.log "$out"/crash-* "$out"/timeout-* "$out"/oom-* "$out"/leak-*
total=$((minutes * 60))
random_cases=1000000
schedules_a_round=20000  # of the simulator, in each core
points_seconds=120       # of crash states, in each round
rounds=0 tests=0 tortures=0 images=0 compared=0 kernels= schedules=0 points=none
failures=()

say() { echo "soak: $(printf '%4d' $((SECONDS / 60))) min  $*"; }

# failed WHAT COMMAND LOG
failed() {
  failures+=("$1: $2")
  say "FAILED $1"
  echo "  repeat: $2"
  echo "  output: $3"
}

# One pass over the tests under a seed of its own.
test_round() {
  local seed=$1 log=$out/tests-$1.log name
  LATCHKEY_SCAN=all LATCHKEY_SEED=$seed ctest --test-dir build/release -j "$jobs" \
    --output-on-failure --no-tests=error >"$log" 2>&1
  local code=$?
  tests=$((tests + $(grep -cE '^ *[0-9]+/[0-9]+ Test ' "$log")))
  if [ $code -ne 0 ]; then
    local names
    names=$(sed -nE 's/^\t *[0-9]+ - ([^ ]+) \(.*/\1/p' "$log")
    for name in ${names:-.}; do
      failed "test $name" "LATCHKEY_SEED=$seed ctest --test-dir build/release -R '^$name\$'" "$log"
    done
  else
    rm -f "$log"
  fi
}

# What crypto_test compares with OpenSSL, for each kernel that this machine has.
random_round() {
  local seed=$1 log=$out/random-$1.log
  local command="env LATCHKEY_CASES=$random_cases LATCHKEY_SEED=$seed \
build/release/tests/crypto_test --gtest_filter=*agrees_with_openssl*"
  if $command >"$log" 2>&1; then
    compared=$(($(grep -c '^\[       OK \]' "$log") * random_cases))
    kernels=$(sed -nE 's|^\[       OK \] .*[/.]([a-z0-9]+)[_ ].*|\1|p' "$log" | paste -sd' ')
    rm -f "$log"
  else
    failed "random cases" "$command" "$log"
  fi
}

# A store of its own, the key removed while writers write, then check.
torture_round() {
  local mode=$1 seed=$2 log=$out/torture-$1-$2.log
  local command="$latchkey torture --mode $mode --seconds $torture_seconds --seed $seed"
  rm -f "$image"
  tortures=$((tortures + 1))
  if { "$latchkey" mkfs --size 8G "$image" && $command --json "$image" &&
       "$latchkey" check "$image"; } >"$log" 2>&1; then
    rm -f "$log" "$image"
  else
    mv "$image" "$log.img"
    failed "torture $mode" "$latchkey mkfs --size 8G IMG && $command IMG" "$log, $log.img"
  fi
}

# Schedules by seed, as many processes as cores; sim_run itself makes a failure shorter and prints
# the line that repeats it.
sim_round() {
  local seed=$1 core count log code pids=()
  for ((core = 0; core < jobs; core++)); do
    build/release/tests/sim_run --schedules $schedules_a_round \
      --seed $((seed + core * schedules_a_round)) >"$out/sim-$seed-$core.log" 2>&1 &
    pids+=($!)
  done
  for ((core = 0; core < jobs; core++)); do
    log=$out/sim-$seed-$core.log
    wait "${pids[$core]}" && code=0 || code=$?
    count=$(grep -oE '^[0-9]+ schedules' "$log" | tail -1)
    schedules=$((schedules + ${count%% *}))
    if [ $code -ne 0 ]; then
      failed simulator "$(grep -E '^build/release/tests/sim_run ' "$log" | head -1)" "$log"
    else
      rm -f "$log"
    fi
  done
}

# All sequences of one and two operations, then sampled ones of three: soak by soak, by build/soak's
# file. A finding names what repeats it.
points_round() {
  local log=$out/points-$1.log
  local command="build/release/tests/crash_points --seconds $points_seconds --jobs $jobs"
  if $command --resume "$out/points.state" >"$log" 2>&1; then
    points=$(tail -1 "$log" | sed -nE 's/^crash points: (.*) in [0-9]+ s$/\1/p')
    rm -f "$log"
  else
    failed "crash points" "build/release/tests/crash_points \
$(sed -nE 's/^FINDING (--seed [0-9]+ --only [0-9]+):.*/\1/p' "$log" | head -1)" "$log"
  fi
}

# fuzz_round TARGET SECONDS
fuzz_round() {
  local fuzz=build/fuzz/tests/$1_fuzz seed=$((RANDOM * 32768 + RANDOM + 1))
  local corpus=$out/corpus log=$out/fuzz-$1-$seed.log
  rm -rf "$corpus" && mkdir "$corpus"
  "$fuzz" -max_total_time="$2" -timeout=10 -rss_limit_mb=2048 -seed="$seed" \
    -artifact_prefix="$out/" "$corpus" >"$log" 2>&1
  local code=$? runs found
  runs=$(sed -nE 's/^#([0-9]+).*/\1/p' "$log" | tail -1)
  images=$((images + ${runs:-0}))
  if [ $code -ne 0 ]; then
    found=$(sed -nE 's/.*Test unit written to (.*)/\1/p' "$log" | tail -1)
    failed "fuzz target $1" "$fuzz ${found:--seed=$seed -max_total_time=$2 $corpus}" "$log"
  else
    rm -f "$log"
  fi
}

summary() {
  trap '' EXIT INT TERM
  rm -f "$image"
  rm -rf "$out/corpus"
  echo "soak: $((SECONDS / 60)) of $minutes minutes, $rounds rounds: $tests tests," \
    "$compared random cases (${kernels:-none}), $tortures tortures, $schedules schedules," \
    "$images fuzzed images;" \
    "${#failures[@]} failed"
  echo "soak: crash points so far: $points"
  [ ${#failures[@]} -eq 0 ] || printf '  %s\n' "${failures[@]}"
  [ ${#failures[@]} -eq 0 ] && [ "$rounds" -gt 0 ] && [ "$images" -gt 0 ] &&
    [ "$compared" -gt 0 ] && [ "$schedules" -gt 0 ]
  exit
}
trap summary EXIT
trap 'exit 130' INT TERM

SECONDS=0
first=$(date +%s)
say "$random_cases random cases of each kernel, LATCHKEY_SEED=$first"
random_round "$first"
while [ "$rounds" -eq 0 ] || [ "$SECONDS" -lt $((total * 2 / 3)) ]; do
  seed=$((first + rounds * 100000))  # a test counts up from there, by less than that
  say "round $((rounds + 1)), LATCHKEY_SEED=$seed"
  test_round "$seed"
  for mode in $modes; do torture_round "$mode" "$seed"; done
  sim_round "$seed"
  points_round "$seed"
  rounds=$((rounds + 1))
done
# Each target once, whatever time is left.
turn=0
while [ "$turn" -lt ${#fuzz_targets[@]} ] || [ $((total - SECONDS)) -gt 30 ]; do
  target=${fuzz_targets[turn % ${#fuzz_targets[@]}]}
  left=$((total - SECONDS))
  to_come=$((turn < ${#fuzz_targets[@]} ? ${#fuzz_targets[@]} - turn : 1))
  span=$((left / to_come))
  span=$((span > fuzz_seconds_max ? fuzz_seconds_max : span < 30 ? 30 : span))
  say "fuzz target $target for $span s"
  fuzz_round "$target" "$span"
  turn=$((turn + 1))
  [ "$images" -gt 0 ] && [ ${#failures[@]} -lt 20 ] || break
done
