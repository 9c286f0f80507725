"""A few kills and a full disk, as `python -m tests.fuzz.kills` makes many of every trainer."""

import json
import os
import subprocess
import sys


def test_a_run_that_was_killed_ends_as_if_it_had_not_been():
    command = [sys.executable, "-m", "tests.fuzz.kills", "--num=2", "--num-full-disks=1", "--trainers=train-q-learning"]
    done = subprocess.run(command, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])["total"]
    assert counts["kills"] >= 2
    assert counts["full disks"] == 1
    assert "failed" not in counts
