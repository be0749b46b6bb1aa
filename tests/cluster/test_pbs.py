"""The profile for PBS, with a `qsub` that notes what it was asked for and runs the job at once."""

import importlib.util
import os

import pytest

from copies import ROOT, snakemake

PROBE = f"""
configfile: "{ROOT}/tests/tiny.yaml"
include: "{ROOT}/rules/common.smk"

rule fails_once:
    output: "attempts.txt"
    threads: 2
    resources: mem_mb=growing(100), runtime=growing(90), gpu=2
    shell: "echo >> tried.txt; [ $(wc -l < tried.txt) = 2 ]; cp tried.txt {{output}}"
"""
QSUB = """#!/bin/sh
echo "$@" >> asked.txt
for script; do :; done
sh "$script" > /dev/null 2>&1 &
echo 7.server
"""

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("snakemake_executor_plugin_cluster_generic") is None,
        reason='no executor plugin for submit commands: pip install -e ".[cluster]"',
    ),
]


def test_a_job_asks_for_its_gpus_and_for_more_at_the_second_attempt(tmp_path):
    (tmp_path / "Snakefile").write_text(PROBE)
    qsub = tmp_path / "qsub"
    qsub.write_text(QSUB)
    qsub.chmod(0o755)
    run = snakemake(
        tmp_path,
        "fails_once",
        "--profile",
        str(ROOT / "profiles/pbs"),
        PATH=f"{tmp_path}:{os.environ['PATH']}",
        PYTHONPATH=str(ROOT / "scripts"),
    )
    assert run.returncode == 0, run.stdout
    first, second = (tmp_path / "asked.txt").read_text().splitlines()
    assert "-l select=1:ncpus=2:mem=100mb:ngpus=2 -l walltime=90:00" in first
    assert "-l select=1:ncpus=2:mem=200mb:ngpus=2 -l walltime=180:00" in second
