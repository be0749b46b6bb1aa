"""Runs Snakemake in forks of a process that has imported it already: each run saves five seconds of processor time.

A run is a process of its own, with the folder, environment and exit status that `python -m snakemake` would
have. It has no terminal, and sees none of the forebear that tests import.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

PRELOADED = [
    "snakemake.cli",
    "snakemake.workflow",
    "snakemake.dag",
    "pandas",
    "pydantic",
    "transformers.models.gpt_neox.modeling_gpt_neox",  # a dry run plans memory
]


def run_snakemake(folder: Path, arguments: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """Exit status, and what `python -m snakemake` with these arguments prints in `folder`."""
    server = _server()
    with tempfile.NamedTemporaryFile("r", encoding="utf-8", prefix="snakemake", suffix=".log") as output:
        job = {"folder": str(folder), "arguments": arguments, "environment": environment, "output": output.name}
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        return int(server.stdout.readline()), output.read()


@cache
def _server() -> subprocess.Popen:
    """Ends with the tests, whose end closes its input."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.Popen(
        [sys.executable, __file__], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def _serve() -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            return _run(**json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _run(folder: str, arguments: list[str], environment: dict[str, str], output: str) -> None:
    for descriptor, path in enumerate((os.devnull, output, output)):
        os.dup2(os.open(path, os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_APPEND), descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:1] = [folder, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv = ["snakemake", *arguments]
    from snakemake.cli import main

    main(arguments)


if __name__ == "__main__":
    _serve()
