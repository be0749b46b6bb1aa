"""Tokens and passwords are in no log, whatever prints them."""

import os
import subprocess
import sys

import pytest

from forebear.runtime.redaction import redacted

JOB = """
import logging, sys, warnings
from forebear.errors import ForebearError
from forebear.runtime.job import start
from snakemake.iocontainers import Params
from types import SimpleNamespace
start(SimpleNamespace(log=[sys.argv[1]], threads=1, input=[], output=[], params=Params(fromdict=dict(recipe="r", results="results"))))
address = "https://me:hunter2@hub.example/model"
print("fetching", address, "with top-secret")
logging.getLogger("some.library").error("could not reach %s", address)
warnings.warn(address)
raise {error}(f"no answer from {{address}} with top-secret")
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://me:hunter2@hub.example/m?x=1", "https://***@hub.example/m?x=1"),
        ("my/https:/me:hunter2@hub.example", "my/https:/***@hub.example"),
        ("GET http://hub.example/m?X-Amz-Signature=ab12&part=2", "GET http://hub.example/m?X-Amz-Signature=***&part=2"),
        ("Bearer hf_abcdefghijklmnopqrst.", "Bearer ***."),
        ("the token is top-secret", "the token is ***"),
    ],
)
def test_secrets_are_hidden(text: str, expected: str):
    assert redacted(text, {"HF_TOKEN": "top-secret"}) == expected


@pytest.mark.parametrize(
    "text",
    ["results/tiny/factors@x/e.h5: a@b", "pretraining@finetuning", "https://hub.example/m?part=2", "hf_hub", "true"],
)
def test_everything_else_stays(text: str):
    harmless = {"HF_TOKEN_PATH": "/results/tiny", "USE_TOKEN": "true", "NAME": "pretraining"}
    assert redacted(text, harmless) == text


@pytest.mark.parametrize("error", ["ForebearError", "RuntimeError"])
def test_a_log_has_no_secrets_whatever_prints_them(tmp_path, error: str):
    log = tmp_path / "job.log"
    run = subprocess.run(
        [sys.executable, "-c", JOB.format(error=error), log],
        env={**os.environ, "HF_TOKEN": "top-secret"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    text = log.read_text()
    assert run.stdout + run.stderr == ""
    assert "hunter2" not in text
    assert "top-secret" not in text
    assert text.count("https://***@hub.example/model") == 4
    assert text.splitlines()[-1].startswith(
        "job: " if error == "RuntimeError" else "error: no answer from https://***@"
    )
