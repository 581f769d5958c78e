#!/usr/bin/env python3
"""Goal: a seed and a commit repeat a schedule of the simulator in any process, bit by bit: the same
calls, choices, device times and results. Method: sim_run twice, with memory laid out anew by the
kernel each time; its trace is a hash of all of that."""
import os
import pathlib
import re
import subprocess
import unittest

SIM_RUN = pathlib.Path(os.environ["LATCHKEY_TOOLS"]) / "sim_run"


class TwoProcesses(unittest.TestCase):
    def run_it(self, *words, environment=None):
        done = subprocess.run([SIM_RUN, *words], capture_output=True, text=True,
                              env={**os.environ, **(environment or {})})
        self.assertEqual((done.returncode, done.stderr), (0, ""), done.stdout)
        return done.stdout

    def test_many_schedules_have_the_same_trace(self):
        last = [self.run_it("--seed", "7000", "--schedules", "150").splitlines()[-1]
                for _ in range(2)]
        facts = [re.sub(r"\d+ a minute of processor time", "", line) for line in last]
        self.assertEqual(facts[0], facts[1])
        self.assertRegex(facts[0], r"^150 schedules, .* 0 failed, trace [0-9a-f]{16}$")

    def test_one_schedule_makes_the_same_calls_at_the_same_moments(self):
        for seed in (11, 12, 13):
            words = ("--seed", str(seed), "--schedule", "5")
            # What lies on the stack before main() moves what comes after it.
            again = self.run_it(*words, environment={"PADDING": "x" * 5000})
            self.assertEqual(self.run_it(*words), again)
            self.assertIn("ns: op ", again)


if __name__ == "__main__":
    unittest.main()
