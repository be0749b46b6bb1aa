"""The real workflow on a tiny study with every estimator: it adds what is new, and refuses bad input."""

import os
import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import yaml

from copies import ROOT, copy_workflow, snakemake
from forebear.artifacts.hdf5 import read_attributes
from forebear.factors.files import create_factors, read_eigenvalues
from forebear.scores.files import read_scores
from forebear.scores.rescoring import outermost

TINY = yaml.safe_load((ROOT / "tests/tiny.yaml").read_text())
COLUMNS = "results/tiny/queries/pretraining/multistage-ekfac.h5"


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["studies"]["tiny"].update(changes)
    path.write_text(yaml.safe_dump(config, sort_keys=False))


@pytest.fixture(scope="module")
def finished(finished_study, tmp_path_factory) -> Path:
    """The tiny study with every estimator: those of the finished one and all others."""
    folder = tmp_path_factory.mktemp("finished") / "study"
    shutil.copytree(finished_study, folder, copy_function=shutil.copy2)
    edit_config(folder, estimators=TINY["studies"]["tiny"]["estimators"])
    run = snakemake(folder)
    assert run.returncode == 0, run.stdout
    assert "(Rule: train_stage)" not in run.stdout
    return folder


@pytest.fixture
def workspace(finished, tmp_path) -> Path:
    """A copy of the finished study, free to be broken."""
    return shutil.copytree(finished, tmp_path / "workspace", copy_function=shutil.copy2)


def refused(folder: Path, words: str, *arguments: str) -> None:
    run = snakemake(folder, *arguments)
    assert run.returncode == 1
    assert words in run.stdout
    assert "Traceback" not in run.stdout


def planned_jobs(folder: Path, *targets: str) -> set[str]:
    """Names of the rules that a dry run would run."""
    counts = [line.split() for line in snakemake(folder, "--dry-run", *targets).stdout.splitlines()]
    return {words[0] for words in counts if len(words) == 2 and words[1].isdigit()}


def test_every_estimator_is_in_the_table(finished):
    table = pd.read_csv(finished / "results/tiny/evaluation.csv")
    assert set(TINY["studies"]["tiny"]["estimators"]) <= set(table.estimator)
    assert table[["lds", "seconds_per_pair", "peak_mib"]].notna().all(axis=None)


def retrained_models(folder: Path) -> dict[str, int]:
    """Key of every retrained model → when its weights were written."""
    weights = (folder / "results/tiny/ground_truth/retrainings").glob("*/finetuning/model.safetensors")
    return {path.parents[1].name: path.stat().st_mtime_ns for path in weights}


def test_more_subsets_retrain_only_the_new_ones(workspace):
    before = retrained_models(workspace)
    edit_config(workspace, ground_truth={"subsets": 6, "repeats": 3, "shards": 3})
    run = snakemake(workspace, "results/tiny/ground_truth/bank.h5")
    assert run.returncode == 0, run.stdout
    after = retrained_models(workspace)
    assert len(after) == len(before) + 2
    assert before.items() < after.items()
    with h5py.File(workspace / "results/tiny/ground_truth/bank.h5") as bank:
        assert bank["subset"][()].tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2]


def test_other_queries_are_measured_at_the_models_that_are_there(workspace):
    before = retrained_models(workspace)
    queries = workspace / "results/tiny/data/queries.jsonl"
    queries.write_text("".join(queries.read_text().splitlines(keepends=True)[:-1]))
    assert not planned_jobs(workspace) & {"train_stage", "draw_subsets", "retrain"}
    run = snakemake(workspace, "results/tiny/ground_truth/bank.h5")
    assert run.returncode == 0, run.stdout
    assert retrained_models(workspace) == before
    with h5py.File(workspace / "results/tiny/ground_truth/bank.h5") as bank:
        assert bank["measurements"].shape == (7, 11)


def test_a_retraining_that_is_gone_is_named_and_made_again_alone(workspace):
    before = retrained_models(workspace)
    gone = next(iter(before))
    shutil.rmtree(workspace / "results/tiny/ground_truth/retrainings" / gone)
    refused(
        workspace, "Add `--forcerun retrain`", "results/tiny/ground_truth/bank.h5", "--forcerun", "measure_retrainings"
    )
    run = snakemake(workspace, "results/tiny/ground_truth/bank.h5", "--forcerun", "retrain")
    assert run.returncode == 0, run.stdout
    after = retrained_models(workspace)
    assert after.keys() == before.keys()
    assert {key for key in after if after[key] != before[key]} == {gone}


def test_words_and_chance_are_scored_without_a_model(tmp_path):
    folder = copy_workflow(tmp_path)
    run = snakemake(folder, *(f"results/tiny/scores/pretraining/{name}.h5" for name in ("bm25", "random")))
    assert run.returncode == 0, run.stdout
    assert not (folder / "results/tiny/models").exists()
    assert "train_stage" in planned_jobs(folder, "results/tiny/scores/pretraining/embedding.h5")


def test_a_chain_of_one_is_planned(workspace):
    config = yaml.safe_load((workspace / "config.yaml").read_text())
    edit_config(workspace, stages=config["studies"]["tiny"]["stages"][:1])
    run = snakemake(workspace, "--dry-run")
    assert run.returncode == 0, run.stdout
    assert "scores/pretraining/at_pretraining" in run.stdout
    assert "scores/pretraining/at_finetuning" not in run.stdout


def test_documents_of_two_stages_are_planned(workspace):
    edit_config(workspace, attributed_stages=["pretraining", "finetuning"])
    run = snakemake(workspace, "--dry-run")
    assert run.returncode == 0, run.stdout
    assert "scores/finetuning/at_finetuning/1-of-1.h5" in run.stdout
    assert "scores/pretraining/at_pretraining/1-of-1.h5" not in run.stdout  # they are there


def test_an_unknown_estimator_is_refused(workspace):
    edit_config(workspace, estimators=["multistage-ekfak"])
    refused(workspace, "there is no estimator 'multistage-ekfak'")


def test_a_study_without_stages_is_refused(workspace):
    edit_config(workspace, stages=[])
    refused(workspace, "`studies.tiny.stages` is empty")


def test_a_broken_document_is_named_by_file_and_line(workspace):
    corpus = {"documents": {"pretraining": "docs.jsonl", "finetuning": "docs.jsonl"}, "queries": "docs.jsonl"}
    (workspace / "docs.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    edit_config(workspace, corpus=corpus)
    prepared = "results/tiny/data/pretraining.jsonl"
    refused(workspace, "docs.jsonl, line 2: not valid JSON", prepared)
    assert not (workspace / prepared).exists()


def test_a_file_cut_in_half_is_refused(workspace):
    path = workspace / "results/tiny/factors/pretraining/eigenvalues.h5"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(workspace, "eigenvalues.h5: the file is damaged", COLUMNS, "--force")
    assert not (workspace / COLUMNS).exists()


def test_factors_of_another_model_are_refused(workspace):
    factors = workspace / "results/tiny/factors"
    exchange(factors / "pretraining/eigenbasis.h5", (factors / "finetuning/eigenbasis.h5").read_bytes())
    refused(workspace, "was made with another model digest", COLUMNS, "--force")
    assert not (workspace / COLUMNS).exists()


def test_factors_of_another_seed_are_refused(workspace):
    target = workspace / "results/tiny/factors/pretraining/eigenvalues.h5"
    other = {**read_attributes(target), "seed": 1}
    with create_factors(workspace / "other.h5", "eigenvalues", other) as file:
        file.write(read_eigenvalues(target))
    exchange(target, (workspace / "other.h5").read_bytes())
    refused(workspace, "was made with another seed (1 instead of 0)", COLUMNS, "--force")
    assert not (workspace / COLUMNS).exists()


def exchange(target: Path, content: bytes) -> None:
    """Replace a file as a careless copy with preserved times would."""
    times = target.stat().st_atime_ns, target.stat().st_mtime_ns
    target.write_bytes(content)
    os.utime(target, ns=times)


def test_scores_of_another_estimator_are_refused(workspace):
    scores = workspace / "results/tiny/scores/pretraining"
    exchange(scores / "at_pretraining.h5", (scores / "random.h5").read_bytes())
    for target in ("results/tiny/evaluation.csv", "results/tiny/proponents.md"):
        refused(workspace, "at_pretraining.h5: has scores of random, not of multistage-ekfac", target, "--force")
        assert not (workspace / target).exists()


def test_fewer_gpus_than_the_study_asks_for_is_one_sentence(workspace):
    """Snakemake clips what a job asks for to --resources; the job counts its devices itself."""
    edit_config(workspace, gpus=2)
    model = "results/tiny/models/pretraining/manifest.json"
    for visible in ("", "0"):
        run = snakemake(workspace, model, "--resources", "gpu=1", CUDA_VISIBLE_DEVICES=visible)
        assert run.returncode == 1
        assert f"the study asks for 2 GPUs, but this job sees {len(visible)} " in run.stdout
        assert "Traceback" not in run.stdout


def test_outermost_scores_of_compressed_queries_are_those_of_whole_ones(workspace):
    scores, names = workspace / "results/tiny/scores/pretraining", ["multistage-ekfac", "multistage-pcg"]
    first, found = scores / "at_pretraining.h5", scores / "rescored_at_pretraining.h5"
    whole = {name: read_scores(first, name).matrix for name in [*names, "gradient-cosine"]}
    edit_config(workspace, estimators=[*whole, "multistage-relatif"], compression={"rank": 1, "rescore": 5})
    relatif = scores / "multistage-relatif.h5"
    run = snakemake(workspace, "results/tiny/proponents.md", str(relatif.relative_to(workspace)))
    assert run.returncode == 0, run.stdout
    assert "Rule: train_stage" not in run.stdout
    assert not (read_scores(first, "multistage-ekfac").matrix == whole["multistage-ekfac"]).any()
    for name in names:
        again, scored = read_scores(found, name), ~np.isnan(whole[name]).all(0)
        rescored, exact = again.matrix, again.exact
        assert 0.01 < again.attributes["residual"] < 1
        np.testing.assert_allclose(rescored[exact], whole[name][exact], rtol=1e-4, atol=1e-5 * np.nanmax(whole[name]))
        assert not (rescored[~exact][:, scored] == whole[name][~exact][:, scored]).any()
        assert 10 <= exact.sum() < len(exact)
        assert exact[outermost(rescored, 5)].all()
    assert np.array_equal(read_scores(found, "gradient-cosine").matrix, whole["gradient-cosine"])
    assert read_scores(found, "gradient-cosine").exact.all()
    expected = read_scores(found, "multistage-ekfac").exact
    assert (read_scores(relatif, "multistage-relatif").exact == expected).all()
    page = (workspace / "results/tiny/proponents.md").read_text()
    assert "queries of rank 1" in page
    assert "≈ +" not in page
    assert "Nothing to be done" in snakemake(workspace, "results/tiny/proponents.md").stdout


def test_a_pass_goes_by_the_name_of_its_rule(workspace):
    """On the command line, to which a site's profile adds."""
    scores = [f"results/tiny/scores/pretraining/at_{stage}.h5" for stage in ("pretraining", "finetuning")]
    forced = snakemake(workspace, "--dry-run", "--forcerun", "compute_pairwise_scores", "--", *scores).stdout
    assert re.search(r"^compute_pairwise_scores +2$", forced, re.MULTILINE)
    assert not re.search(r"^(fit_covariances|solve_queries) ", forced, re.MULTILINE)
    for path in scores:
        (workspace / path).unlink()
    asked = snakemake(workspace, "--dry-run", "--set-resources", "compute_pairwise_scores:mem_mb=12345", "--", *scores)
    assert asked.stdout.count(", 12345 MB, ") == 2
    run = snakemake(workspace, "--until", "compute_pairwise_scores", "--", *scores)
    assert run.returncode == 0, run.stdout
    assert re.findall(r"\(Rule: (\w+)\)", run.stdout) == 2 * ["compute_pairwise_scores"]
