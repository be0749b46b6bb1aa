"""The profile for SLURM on a real SLURM of one machine; skipped where that cannot be started."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from copies import ROOT, copy_workflow
from loopback_hub import Hub, serving
from published import published_data, published_models
from slurm_cluster import DAEMONS, SYSTEM_CONFIG, one_machine_cluster, output_of, runs, wait_until, why_not

FACTORS = "results/tiny/factors/pretraining/eigenbasis.h5"

# Rules whose resources grow as those of the workflow do, and that write down what SLURM gave them.
PROBES = f"""
configfile: "{ROOT}/tests/tiny.yaml"
include: "{ROOT}/rules/common.smk"

rule two_devices:
    output: "devices.txt"
    resources: mem_mb=growing(100), runtime=growing(5), gpu=2
    shell: "echo $CUDA_VISIBLE_DEVICES > {{output}}"

rule fails_once:
    output: "attempts.txt"
    resources: mem_mb=growing(100), runtime=growing(5)
    shell: "squeue -h -j $SLURM_JOB_ID -o '%m %l' >> tried.txt; [ $(wc -l < tried.txt) = 2 ]; cp tried.txt {{output}}"
"""

pytestmark = [
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
    pytest.mark.skipif(
        importlib.util.find_spec("snakemake_executor_plugin_slurm") is None,
        reason='no executor plugin for SLURM: pip install -e ".[cluster]"',
    ),
]


@pytest.fixture(scope="module", autouse=True)
def killed(tmp_path_factory) -> dict[str, int]:
    """Daemons of a cluster whose test run was killed; then a cluster that takes its place."""
    folder = tmp_path_factory.mktemp("killed")
    code = "import os, sys; from pathlib import Path; from slurm_cluster import one_machine_cluster\n"
    code += "with one_machine_cluster(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT / "tests", check=False)
    daemons = {name: int((folder / f"run/{name}.pid").read_text()) for name in DAEMONS}
    assert (SYSTEM_CONFIG / "slurm.conf").resolve() == folder / "slurm.conf"
    assert why_not() is None
    with one_machine_cluster(tmp_path_factory.mktemp("slurm")):
        yield daemons


def submit(folder: Path, *arguments: str) -> subprocess.Popen:
    """Start Snakemake with the profile; this cluster has no database, and its jobs are short."""
    command = ["env", "--default-signal=INT"]  # a shell's background job, as these tests may be, ignores it
    command += [sys.executable, "-m", "snakemake", *arguments, "--profile", str(ROOT / "profiles/slurm")]
    command += ["--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "2"]
    environment = {**os.environ, "PYTHONPATH": f"{folder}/scripts:{ROOT}/scripts"}  # the copy's engine, if it has one
    with (folder / "snakemake.log").open("w") as log:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen, folder: Path) -> None:
    assert process.wait(timeout=900) == 0, (folder / "snakemake.log").read_text()


def queue(states: str) -> list[str]:
    """What jobs in these states ask for as `--gpus`, N/A for none; squeue's %b does not show it."""
    return output_of("squeue", "-h", f"--states={states}", "-O", "tres-per-job").split()


@pytest.fixture
def probes(tmp_path) -> Path:
    (tmp_path / "Snakefile").write_text(PROBES)
    return tmp_path


def test_the_cluster_of_a_killed_test_run_makes_way_and_a_running_one_does_not(killed):
    assert not any(runs(pid, name) for name, pid in killed.items())
    assert "belongs to a SLURM cluster" in why_not()


def test_a_rule_with_two_gpus_waits_for_both_and_gets_both(probes):
    other = output_of("sbatch", "--parsable", "--gpus=1", "--mem=100", "--output=/dev/null", "--wrap=sleep 600").strip()
    wait_until(lambda: queue("RUNNING"), "another job has one of the devices")
    process = submit(probes, "two_devices")
    wait_until(lambda: queue("PENDING"), "the rule's job waits")
    assert not (probes / "devices.txt").exists()
    output_of("scancel", other)
    finish(process, probes)
    assert (probes / "devices.txt").read_text() == "0,1\n"


def test_memory_and_run_time_rise_with_the_attempt(probes):
    finish(submit(probes, "fails_once"), probes)
    assert (probes / "attempts.txt").read_text().splitlines() == ["100M 5:00", "200M 10:00"]


def test_a_cancelled_run_takes_its_jobs_along_and_resumes(tmp_path):
    copy_workflow(tmp_path)
    trained = tmp_path / "results/tiny/models/pretraining/manifest.json"
    following = tmp_path / "results/tiny/logs/fit_covariances/pretraining/1-of-1.log"

    process = submit(tmp_path, FACTORS)
    wait_until(following.exists, "the stage is trained and the next job runs")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=300) != 0
    wait_until(lambda: not queue("PENDING,RUNNING"), "its jobs are cancelled")
    assert not (tmp_path / FACTORS).exists()

    before = trained.stat().st_mtime_ns
    finish(submit(tmp_path, FACTORS), tmp_path)
    assert (tmp_path / FACTORS).exists()
    assert trained.stat().st_mtime_ns == before


def test_the_ten_lines_of_the_page_submit_the_study(tmp_path):
    """As they stand, but for tmux, the installation and the editor; the hub's models are tiny ones."""
    lines = (ROOT / "docs/clusters.md").read_text().split("```bash\n")[1].split("```")[0].splitlines()
    assert [line.split()[0] for line in lines] == [
        "tmux", "git", "python3", "pip", "cp", "sinfo", "cp", "nano", "snakemake", "snakemake",
    ]  # fmt: skip
    _, fetch, _, _, data, partitions, profile, _, plan, run = lines
    own = published_data(tmp_path / "own")
    installed = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": installed, "HF_HOME": str(tmp_path / "home")}
    environment["PYTHONPATH"] = "scripts"  # the clone's engine, as after its installation

    def shell(folder: Path, *commands: str) -> str:
        script = "\n".join(commands).replace("<this repository>", str(ROOT)).replace("/where/your/files/are", str(own))
        return output_of(
            "env", f"--chdir={folder}", *(f"{k}={v}" for k, v in environment.items()), "bash", "-ec", script
        )

    clone = tmp_path / "forebear"
    shell(tmp_path, fetch)
    assert "gpu* gpu:a100:2" in shell(clone, data, partitions, profile)
    edited = clone / "profiles/mysite/config.yaml"
    text = edited.read_text().replace("# slurm_partition: gpu  #", "  slurm_partition: gpu  #")
    text = text.replace("# slurm-status-command", "slurm-status-command")  # this site has no database
    edited.write_text(
        text.replace("# slurm-init-seconds-before-status-checks: 40", "slurm-init-seconds-before-status-checks: 2")
    )

    with serving(Hub(published_models("dolly", tmp_path / "hub"))) as hub:
        environment["HF_ENDPOINT"] = hub.url
        planned = shell(clone, f"{plan} 2>&1")
        assert re.search(r"documents nearest to the queries \[\d+ threads, \d+ MB, 2 GPUs", planned)
        with (clone / "snakemake.log").open("w") as log:
            command = ["bash", "-c", f"exec {run}"]
            process = subprocess.Popen(command, cwd=clone, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_until(lambda: "gpu:2" in " ".join(queue("all")), "a job with two GPUs is submitted", seconds=150)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=300)
    wait_until(lambda: not queue("PENDING,RUNNING"), "its jobs are cancelled")
