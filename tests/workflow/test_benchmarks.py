"""The benchmark of large models runs at a tiny shape."""

import re
import subprocess
import sys

from copies import ROOT

SIZES = {"layers": 2, "hidden": 16, "heads": 2, "intermediate": 32, "vocabulary": 50, "queries": 2}
RUN = {"documents": 6, "length": 12, "batch-tokens": 48, "repeats": 1, "threads": 1}
STAGES = ["one pass", "covariances", "eigenbasis", "eigenvalues", "query gradients", "inverse", "scores"]


def test_both_precisions_are_measured_and_agree():
    options = [word for name, value in {**SIZES, **RUN}.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, ROOT / "tests/benchmarks/benchmark_large.py", *options, "--cpu-time"]
    run = subprocess.run(
        [*command, "--split-heads", "--device", "cpu", "--skip-kronfluence"],
        text=True,
        capture_output=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    for precision in ("float32", "bfloat16"):
        rows = run.stdout.split(f"\n{precision} ")[1].splitlines()[1 : len(STAGES) + 1]
        assert [re.split(r"  +", row)[0] for row in rows] == STAGES
        assert all(float(row.split()[-1]) > 0 for row in rows)  # GiB
    agreement = float(run.stdout.split("float32 and bfloat16: ")[1].split()[0])
    assert agreement > 0.8
