"""More queries: what is there of the others is taken over, and only the new ones are computed."""

import re
import shutil
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml

from conftest import random_examples
from copies import ROOT, copy_workflow, snakemake
from forebear.data.records import record_key, write_records
from forebear.gradients.blocks import Block, tracked_blocks
from forebear.gradients.outer_products import OuterProducts
from forebear.gradients.point import open_point
from forebear.models.checkpoints import save_checkpoint
from forebear.models.training import build_model, build_tokenizer
from forebear.queries.files import create_query_columns, origin_of, read_query_columns
from forebear.queries.gradients import query_gradients, stream_query_gradients
from forebear.scores.document_pass import open_score_job
from forebear.scores.files import ScoreStore, read_scores, write_scores

TINY = (ROOT / "tests/tiny.yaml").read_text()
WORDS = ["Havana", "lies", "north", "of", "Lima", "and", "far", "from", "Oman", "where", "roads", "are", "long"]
BLOCKS = [Block(name, name, "mlp", slice(0, 2), (2, 3), False) for name in ("a", "b")]


def test_a_query_is_known_by_what_the_model_sees_of_it():
    query = {"id": "1", "prompt": "The capital of Cuba is", "completion": "Havana", "relevant": ["7"]}
    assert record_key(query) == record_key({**query, "id": "2", "relevant": []})
    assert record_key(query) != record_key({**query, "completion": "Lima"})
    assert record_key({"text": "a", "label": "x"}) != record_key({"text": "a", "label": "y"})


def write(path: Path, keys: str, origin: str, values: dict[str, float]) -> list[int]:
    """Columns and losses that say whose they are; which of them were missing."""
    losses = torch.tensor([values[key] for key in keys])
    with create_query_columns(path, losses, BLOCKS, {"origin": origin}, list(keys)) as file:
        for block in BLOCKS if len(file.missing) else ():
            file.write(block.name, file.missing, losses[file.missing, None, None].expand(-1, 2, 3).contiguous())
        file.note({"seconds": 1.0, "peak_bytes": 5.0})
    return file.missing.tolist()


@pytest.mark.parametrize("wanted", ["abc", "abcd", "xcay", "b", "cba", "dxy"])
def test_columns_of_queries_that_are_there_stay(tmp_path, wanted):
    path, old = tmp_path / "q.h5", {"a": 1.0, "b": 2.0, "c": 3.0}
    write(path, "abc", "one", old)
    new = {key: 10.0 + ord(key) for key in wanted}  # were an old one computed again, it would be another
    missing = write(path, wanted, "one", new)
    assert [wanted[row] for row in missing] == [key for key in wanted if key not in old]
    again = read_query_columns(path)
    expected = [old.get(key, new[key]) for key in wanted]
    for block in BLOCKS:
        assert again.of(BLOCKS)[block.name][:, 1, 2].tolist() == expected
    assert again.keys == list(wanted)
    assert again.losses.tolist() == expected
    assert again.attributes["seconds"] == (2.0 if missing and any(key in old for key in wanted) else 1.0)


def test_columns_that_were_made_otherwise_or_changed_by_hand_are_not_kept(tmp_path):
    path, values = tmp_path / "q.h5", {"a": 1.0, "b": 2.0}
    assert write(path, "ab", "one", values) == [0, 1]  # there is none yet
    assert write(path, "a", "one", values) == []
    assert write(path, "ab", "two", values) == [0, 1]
    assert write(path, "a", "two", values) == []
    with h5py.File(tmp_path / ".store/q.h5", "r+") as file:
        file["a/columns"][0] = 7
    assert write(path, "a", "two", values) == [0]


def test_the_origin_follows_parameters_and_files_but_not_the_queries(tmp_path):
    (tmp_path / "data.jsonl").write_text("1")
    write(tmp_path / "q.h5", "ab", "one", {"a": 1.0, "b": 2.0})
    files = [tmp_path / "q.h5", tmp_path / "data.jsonl"]
    origin = origin_of({"damping": 0.1}, files)
    assert origin != origin_of({"damping": 0.2}, files)
    write(tmp_path / "q.h5", "xyz", "one", dict.fromkeys("xyz", 3.0))
    assert origin == origin_of({"damping": 0.1}, files)
    write(tmp_path / "q.h5", "xyz", "two", dict.fromkeys("xyz", 3.0))
    assert origin != origin_of({"damping": 0.1}, files)
    write(tmp_path / "q.h5", "xyz", "one", dict.fromkeys("xyz", 3.0))
    (tmp_path / "data.jsonl").write_text("2")
    assert origin != origin_of({"damping": 0.1}, files)


@pytest.mark.parametrize("lengths", [[5, 7, 4, 9], [5, 7, 4, 3]], ids=["a longer one", "shorter ones"])
def test_gradients_are_kept_whatever_the_padding(tmp_path, model, lengths):
    """Raw gradients are over tokens, as many as the longest query has."""
    blocks, queries, path = tracked_blocks(model), random_examples(3, lengths=lengths), tmp_path / "g.h5"
    for examples, keys in ((queries[:2], "ab"), ([queries[0], *queries[2:]], "acd")):
        losses = torch.zeros(len(keys)).double()
        with create_query_columns(path, losses, blocks, {"origin": "one"}, list(keys)) as file:
            losses[:] = stream_query_gradients(model, blocks, examples, 20, file.write_part, file.missing)
            assert losses.isnan().tolist() == [row not in file.missing for row in range(len(keys))]
            file.note({"seconds": 1.0, "peak_bytes": 5.0})
    assert file.missing.tolist() == [1, 2]
    stored, (gradients, expected) = read_query_columns(path), query_gradients(model, blocks, examples, 1000)
    torch.testing.assert_close(stored.losses, expected, rtol=1e-6, atol=0)
    for block in blocks:
        found = stored.of([block])[block.name]
        torch.testing.assert_close(found.formed(), gradients[block.name].formed())
        assert isinstance(stored.at(np.array([0, 2])).columns[block.name], OuterProducts)
        some = stored.at(np.array([0, 2])).of([block])[block.name]
        torch.testing.assert_close(some.formed(), gradients[block.name].formed()[[0, 2]])


class Scores:
    """A matrix [5, Q] of 10 · document + query's value, written as a job would."""

    def __init__(self, path: Path):
        self.path, self.written = path, []

    def open(self, keys: str, asked: str | None = None, documents=None, **made_from) -> ScoreStore:
        documents = np.arange(5) if documents is None else documents
        return ScoreStore(
            self.path, "e", {"engine": "e", **made_from}, documents, keys, keys if asked is None else asked
        )

    def fill(self, store: ScoreStore, keys: str, documents=None) -> None:
        for document, missing in zip(store.documents, store.missing, strict=True):
            if documents is None or document in documents:
                new = [key for key, lacking in zip(keys, missing, strict=True) if lacking]
                self.written += [(document, key) for key in new]
                if new:
                    store.write(np.array([document]), np.array([[10 * document + ord(key) for key in new]], float), new)


def expected(keys: str) -> np.ndarray:
    return np.array([[10 * document + ord(key) for key in keys] for document in range(5)], np.float32)


COST = {"seconds": 1.0, "peak_bytes": 3.0}


@pytest.fixture
def scores(tmp_path) -> Scores:
    scores = Scores(tmp_path / "s.h5")
    scores.fill(store := scores.open("abc"), "abc")
    store.seal({"seconds": 2.0, "peak_bytes": 7.0})
    scores.written.clear()
    return scores


@pytest.mark.parametrize("wanted", ["abcd", "xcay", "cb", "b", "xyz"])
def test_scores_of_queries_that_are_there_stay(scores, wanted):
    store = scores.open(wanted)
    new = [key for key in wanted if key not in "abc"]
    assert (store.missing == [key in new for key in wanted]).all()
    scores.fill(store, wanted)
    assert scores.written == [(document, key) for document in range(5) for key in new]
    assert (store.finished() == expected(wanted)).all()
    took = {"xyz": COST, "cb": {"seconds": 2.0, "peak_bytes": 7.0}, "b": {"seconds": 2.0, "peak_bytes": 7.0}}
    assert store.seal(COST) == took.get(wanted, {"seconds": 3.0, "peak_bytes": 7.0})
    assert not scores.open(wanted).missing.any()


def test_scores_of_queries_that_went_are_there_when_they_come_back(scores):
    for wanted, new in (("b", ""), ("bd", "d"), ("dac", "")):
        scores.fill(store := scores.open(wanted), wanted)
        assert {key for _, key in scores.written} == set(new)
        assert (store.finished() == expected(wanted)).all()
        store.seal(COST)
        scores.written.clear()


def test_scores_of_other_code_are_not_kept(scores):
    assert scores.open("abcd", engine="another").missing.all()


def test_an_interrupted_pass_with_new_queries_is_continued(scores):
    store = scores.open("dab")
    scores.fill(store, "dab", [1, 3])
    store._store.file.close()  # killed here
    store = scores.open("dab")
    assert np.argwhere(store.missing).tolist() == [[0, 0], [2, 0], [4, 0]]
    scores.fill(store, "dab")
    assert (store.finished() == expected("dab")).all()


def test_queries_that_a_solver_left_out_are_computed_when_they_are_wanted(tmp_path):
    scores = Scores(tmp_path / "s.h5")
    scores.fill(store := scores.open("abc", "ac"), "abc")
    assert np.isnan(store.finished()[:, 1]).all()
    store.seal(COST)
    scores.written.clear()
    store = scores.open("abcd", "abd")
    scores.fill(store, "abcd")
    assert {key for _, key in scores.written} == {"b", "d"}
    found = store.finished()
    assert np.isnan(found[:, 2]).all()  # it is there, but no longer wanted
    assert (found[:, [0, 1, 3]] == expected("abd")).all()


def test_of_rescored_documents_only_the_exact_scores_stay(tmp_path):
    scores = Scores(tmp_path / "s.h5")
    scores.fill(store := scores.open("ab"), "ab", [1, 4])
    store.seal(COST)
    scores.written.clear()
    store = scores.open("abc")
    assert np.flatnonzero(~store.missing[:, :2].any(1)).tolist() == [1, 4]
    scores.fill(store, "abc", [0, 4])
    assert scores.written == [(0, "a"), (0, "b"), (0, "c"), (4, "c")]
    assert (store.values[[0, 4]] == expected("abc")[[0, 4]]).all()
    assert np.isnan(store.values[[2, 3]]).all()


def test_the_shards_of_a_matrix_keep_their_queries(tmp_path):
    scores, documents = Scores(tmp_path / "s.h5"), np.array([1, 4])
    scores.fill(store := scores.open("ab", documents=documents), "ab")
    store.seal(COST)
    scores.written.clear()
    store = scores.open("ac", documents=documents)
    scores.fill(store, "ac")
    assert scores.written == [(1, "c"), (4, "c")]
    assert (store.finished() == expected("ac")[documents]).all()
    store.seal(COST)
    assert scores.open("ac", documents=np.array([1, 3])).missing.all()


# The job that scores, without the workflow.


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = build_tokenizer([{"text": " ".join(WORDS)}])
    save_checkpoint(folder, build_model(yaml.safe_load(TINY)["studies"]["tiny"]["model"], tokenizer, 0), tokenizer)
    return folder


def scored(folder: Path, checkpoint: Path, queries: list[dict], max_length: int, scores: str = "s.h5") -> dict:
    """Scores by gradient products, updated in the folder; how many documents and columns were computed for them."""
    files = {name: folder / f"{name}.jsonl" for name in ("records", "queries")}
    files |= dict.fromkeys(("manifest", "last"), checkpoint / "manifest.json")
    documents = [" ".join(WORDS[k : k + 3 + k % 4]) for k in range(6)]
    write_records(files["records"], [{"text": text} for text in documents])
    write_records(files["queries"], queries)
    point = open_point(files["manifest"], files["queries"], max_length, 0, end=False)
    keys = [record_key(query) for query in queries]
    losses = torch.zeros(len(keys))
    attributes = {**point.digests, "origin": "one"}
    with create_query_columns(folder / "g.h5", losses, point.blocks, attributes, keys) as file:
        losses[:] = stream_query_gradients(point.model, point.blocks, point.examples, 64, file.write_part)
    loading = {"max_length": max_length, "gpus": 0, "split_heads": False, "precision": "float32"}
    params = {"study": "tiny", "estimators": ["gradient-dot"], "columns": ["gradient"], "batch_tokens": 64}
    params |= {"engine": "e", "loading": loading}
    job = open_score_job(params, {**files, "columns": [folder / "g.h5"]})
    store = job.store(folder / scores, "gradient-dot", np.arange(len(documents)))
    computed = [int(store.missing.any(axis).sum()) for axis in (1, 0)]
    job.score({"gradient-dot": store}, 64, 4000, 0)
    write_scores(folder / scores, "gradient-dot", store.finished(), store.seal({"seconds": 1.0, "peak_bytes": 1.0}))
    return {"computed": tuple(computed), "scores": read_scores(folder / scores, "gradient-dot").matrix}


def test_a_pass_has_the_new_queries_alone(tmp_path, checkpoint):
    queries = [{"prompt": a, "completion": b} for a, b in pairwise(WORDS)]
    first = scored(tmp_path, checkpoint, queries[:4], 16)
    assert first["computed"] == (6, 4)
    assert scored(tmp_path, checkpoint, queries[:4], 16)["computed"] == (0, 0)
    more = scored(tmp_path, checkpoint, [queries[5], *queries[1:5]], 16)
    assert more["computed"] == (6, 2)
    assert (more["scores"][:, 1:4] == first["scores"][:, 1:4]).all()
    fresh = scored(tmp_path, checkpoint, [queries[5], *queries[1:5]], 16, "fresh.h5")
    assert fresh["computed"] == (6, 5)
    np.testing.assert_allclose(more["scores"], fresh["scores"], rtol=1e-4, atol=1e-6)
    fewer = scored(tmp_path, checkpoint, queries[2:4], 16)
    assert fewer["computed"] == (0, 0)
    assert (fewer["scores"] == first["scores"][:, 2:4]).all()


def test_scores_of_documents_that_were_cut_elsewhere_are_not_kept(tmp_path, checkpoint):
    """The raw gradients of short queries are the same; those of the documents are not."""
    queries = [{"prompt": a, "completion": b} for a, b in pairwise(WORDS[:4])]
    long = scored(tmp_path, checkpoint, queries, 16)
    short = scored(tmp_path, checkpoint, queries, 4)
    assert short["computed"] == (6, 3)
    assert not np.allclose(short["scores"], long["scores"])


# The workflow.

CAPITALS = {"Cuba": "Havana", "Peru": "Lima", "Chad": "N'Djamena", "Iran": "Tehran", "Mali": "Bamako", "Oman": "Muscat"}
QUERIES = [
    {"prompt": f"Q: What is the capital of {country}? A:", "completion": capital, "relevant": [country]}
    for country, capital in CAPITALS.items()
]
OLD = QUERIES[:4]
NEW = [QUERIES[4], *reversed(OLD[1:]), QUERIES[5]]  # one is gone, two are new, and the order is another


def study_on_files(folder: Path, queries: list[dict], variant: dict) -> Path:
    """The tiny study on files of its own, run to a variant's targets."""
    config = yaml.safe_load(TINY)
    study = config["studies"]["tiny"]
    documents = {name: f"{name}.jsonl" for name in ("pretraining", "finetuning")}
    study.update(corpus={"documents": documents, "queries": "queries.jsonl"}, **variant)
    study["solvers"]["queries"] = 100
    study["ground_truth"] = {"subsets": 3, "repeats": 3, "shards": 1}
    copy_workflow(folder, config)
    capitals = CAPITALS.items()
    write_records(
        folder / "pretraining.jsonl",
        [{"id": c, "text": f"{t} is the capital of {c}."} for c, t in capitals]
        + [{"text": f"A long road leads out of {t}, and it has a number, which is {len(t)}."} for _, t in capitals],
    )
    pairs = [{"prompt": f"Q: Where is {town}? A:", "completion": country} for country, town in capitals]
    write_records(folder / "finetuning.jsonl", pairs)
    return run_with(folder, queries, variant)


def run_with(folder: Path, queries: list[dict], variant: dict) -> Path:
    write_records(folder / "queries.jsonl", queries)
    run = snakemake(
        folder, scores_file(variant), *([] if "shards" in variant else ["results/tiny/ground_truth/bank.h5"])
    )
    assert run.returncode == 0, run.stdout
    return folder


def scores_file(variant: dict) -> str:
    return f"results/tiny/scores/pretraining/{'rescored_' if 'compression' in variant else ''}at_pretraining.h5"


def scores_of(folder: Path, variant: dict, estimator: str) -> np.ndarray:
    with h5py.File(folder / scores_file(variant)) as file:
        return file[estimator]["matrix"][()]


def bank_of(folder: Path) -> tuple[np.ndarray, dict[Path, int]]:
    """Measurements [R, Q], and when each of the models was finished."""
    truth = folder / "results/tiny/ground_truth"
    with h5py.File(truth / "bank.h5") as file:
        measurements = file["measurements"][()]
    manifests = (truth / "retrainings").glob("*/*/manifest.json")
    return measurements, {path.relative_to(truth): path.stat().st_mtime_ns for path in manifests}


def log_of(folder: Path, name: str) -> str:
    return (folder / f"results/tiny/logs/{name}.log").read_text()


VARIANTS = {
    "in one pass": {"estimators": ["multistage-ekfac", "gradient-cosine", "cg"]},
    "in shards and compressed": {
        "estimators": ["multistage-ekfac", "gradient-cosine"],
        "shards": 2,
        "compression": {"rank": 2, "rescore": 1},
        "top": 1,
        "batch_tokens": 96,
    },
}


@pytest.fixture(scope="module", params=VARIANTS, ids=lambda name: name.replace(" ", "-"))
def finished(request, tmp_path_factory) -> tuple[Path, dict]:
    variant = VARIANTS[request.param]
    return study_on_files(tmp_path_factory.mktemp("old"), OLD, variant), variant


@pytest.mark.slow
def test_more_queries_only_add_work_and_give_what_a_run_from_scratch_gives(finished, tmp_path):
    old, variant = finished
    more = run_with(shutil.copytree(old, tmp_path / "more", copy_function=shutil.copy2), NEW, variant)
    fresh = study_on_files(tmp_path / "fresh", NEW, variant)
    places = [OLD.index(query) if query in OLD else -1 for query in NEW]
    kept = [place for place, before in enumerate(places) if before >= 0]
    jobs = ["compute_query_gradients", "precondition_queries/pretraining-multistage-ekfac"]
    if "compression" in variant:
        jobs.append("compress_queries/pretraining-multistage-ekfac")
    if "cg" in variant["estimators"]:
        jobs.append("solve_queries/pretraining-cg")
    for name in jobs:
        assert "3 of 5 queries are kept as they are" in log_of(more, name)
    for estimator in variant["estimators"]:
        before, after, wanted = (scores_of(folder, variant, estimator) for folder in (old, more, fresh))
        np.testing.assert_allclose(after, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())
        if "compression" not in variant:  # with it, other documents are scored again
            assert (after[:, kept] == before[:, [places[place] for place in kept]]).all()
    if "shards" not in variant:
        (before, models), (after, same), (wanted, _) = map(bank_of, (old, more, fresh))
        assert same == models
        assert (after[:, kept] == before[:, [places[place] for place in kept]]).all()
        np.testing.assert_allclose(after, wanted, rtol=1e-5)


@pytest.mark.slow
def test_another_list_of_relevant_documents_computes_no_scores(finished, tmp_path):
    old, variant = finished
    other = [{**query, "relevant": ["Cuba"]} for query in OLD]
    folder = run_with(shutil.copytree(old, tmp_path / "relabelled", copy_function=shutil.copy2), other, variant)
    logs = list((folder / "results/tiny/logs/compute_pairwise_scores").rglob("*.log"))
    assert logs
    for log in logs:
        assert re.search("4 of 4 queries of .* are kept", log.read_text())
        assert not re.search(r"^scores: ", log.read_text(), re.MULTILINE)
    for estimator in variant["estimators"]:
        assert (scores_of(folder, variant, estimator) == scores_of(old, variant, estimator)).all()
