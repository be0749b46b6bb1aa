"""What a study's provenance tells, and the pages of the report."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from forebear.artifacts.hdf5 import create
from forebear.errors import ForebearError
from forebear.report.html import evaluation_page, markdown_page
from forebear.report.provenance import gather_provenance
from forebear.runtime.receipts import receipt_path, write_receipts


def gathered(folder: Path, *files: Path) -> dict:
    found = gather_provenance("mine", {"seed": 1}, {"seed": 1}, files, folder / "results")
    return json.loads(json.dumps(found))  # as it is written


def test_an_artifact_is_described_by_its_digest_and_attributes(tmp_path):
    with create(tmp_path / "a.h5", "covariances", {"model_digest": "m", "seconds": 1.5}) as file:
        file["values"] = [1.0, 2.0]
        file.create_group("bm25").attrs["seconds"] = 0.5
    described = gathered(tmp_path, tmp_path / "a.h5")["files"][str(tmp_path / "a.h5")]
    assert {"model_digest": "m", "seconds": 1.5, "kind": "covariances"}.items() <= described.items()
    assert described["bm25"] == {"seconds": 0.5}
    assert len(described["sha256"]) == 64
    assert described["bytes"] == (tmp_path / "a.h5").stat().st_size


def test_a_model_is_described_by_its_manifest(tmp_path):
    (tmp_path / "manifest.json").write_text('{"model_digest": "m", "versions": {"torch": "2"}}')
    described = gathered(tmp_path, tmp_path / "manifest.json")["files"][str(tmp_path / "manifest.json")]
    assert described["versions"] == {"torch": "2"}


def test_a_job_is_known_by_the_record_at_the_end_of_its_log(tmp_path):
    for name, text in {
        "train/a": 'epoch 1\njob: {"seconds": 2.5, "peak_bytes": 10, "device": "cpu"}\n',
        "train/cached": "",
        "train/running": "epoch 1\n",
    }.items():
        log = tmp_path / "results/mine/logs" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(text)
    assert gathered(tmp_path)["jobs"] == {
        "train/a": {"seconds": 2.5, "peak_bytes": 10, "device": "cpu"},
        "train/cached": {"cached": True},
    }


def test_a_file_names_the_versions_that_made_it_where_they_are_not_todays(tmp_path):
    results = tmp_path / "attribution/results"
    table = results / "mine/table.csv"
    table.parent.mkdir(parents=True)
    table.write_text("a")
    write_receipts([table], results, "r", {})
    described = gathered(tmp_path / "attribution", table)["files"][str(table)]
    assert described["recipe"] == "r"
    assert "other_versions" not in described
    receipt = json.loads(receipt_path(table, results).read_text())
    receipt["versions"]["torch"] = "1.0"
    receipt_path(table, results).write_text(json.dumps(receipt))
    assert gathered(tmp_path / "attribution", table)["files"][str(table)]["other_versions"] == {"torch": "1.0"}


def test_nothing_of_the_environment_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert "hf_secret" not in json.dumps(gathered(tmp_path))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ForebearError, match=r"gone\.csv: cannot be read"):
        gathered(tmp_path, tmp_path / "gone.csv")


def test_a_page_shows_tables_and_links_but_interprets_no_html():
    page = markdown_page(
        "# Title\n\n[1](#query-1)\n\n## Query 1\n\n| a | b |\n| --- | --- |\n| 1 | <script>x</script> |\n"
    )
    assert '<a href="#query-1">1</a>' in page
    assert '<h2 id="query-1">Query 1</h2>' in page
    assert "<td>1</td>" in page
    assert "<script>" not in page
    assert "<script>" not in evaluation_page(pd.DataFrame({"estimator": ["<script>"], "lds": [0.5]}), "<script>")


def test_the_evaluation_page_has_units_intervals_and_what_is_undefined():
    table = pd.DataFrame(
        {
            "estimator": ["cg", "trak"],
            "lds": [0.394, None],
            "lds_low": [0.33, None],
            "lds_high": [0.44, None],
            "peak_mib": [2392.9, None],
            "undefined": [None, "the head was replaced"],
        }
    )
    cells = re.findall(r"<t[dh]>(.*?)</t[dh]>", evaluation_page(table, "facts"))
    assert cells[:4] == ["estimator", "LDS (95% interval)", "peak, MiB", "undefined"]
    assert cells[4:] == ["cg", "0.39 (0.33 to 0.44)", "2,393", "–", "trak", "–", "–", "the head was replaced"]
