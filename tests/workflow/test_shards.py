"""However many jobs share a pass over documents, the factors and scores are those of one job."""

import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml

from conftest import random_examples, tiny_model
from copies import ROOT, copy_workflow, snakemake
from forebear.artifacts.shards import gather_factor, gather_rows, shard_kind, weighted_mean
from forebear.data.batches import batch_indices, number_of_positions, shard_documents
from forebear.errors import ForebearError
from forebear.factors.eigenvalue_functions import Damping
from forebear.factors.files import create_factors, read_eigenvalues, stored_covariances
from forebear.factors.fit import fit_covariances, fit_eigenvalues
from forebear.factors.kronecker import compute_eigenbasis
from forebear.gradients.blocks import tracked_blocks
from forebear.queries.chain import DampedInverse, apply_chain
from forebear.queries.gradients import query_gradients
from forebear.scores.files import (
    ScoreStore,
    create_scores_shard,
    read_scores,
    read_self_influence,
    write_self_influence,
)
from forebear.scores.pairwise import Request, pairwise_scores
from forebear.scores.self_influence import self_influence

BATCH_TOKENS = 20
SHARDS = (1, 3, 7, 20)  # there are 7 batches: of 20 shards, 13 are empty


@pytest.fixture(scope="module")
def documents():
    return random_examples(
        3, lengths=[6, 2, 9, 5, 7, 3, 8, 4, 6, 9, 2, 5, 7, 8, 3, 6, 4, 9, 5, 7], prompts=[3, 1, 6, 4]
    )


@pytest.fixture(scope="module")
def queries():
    return random_examples(7, lengths=[5, 8, 6], prompts=[3, 6, 4])


def parts(documents, shards: int) -> list[np.ndarray]:
    return [shard_documents(documents, BATCH_TOKENS, k, shards) for k in range(1, shards + 1)]


def assert_close(actual, expected, tolerance: float):
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype
        assert (actual[name] - tensor).norm() <= tolerance * tensor.norm(), name


# Which documents a shard has


@pytest.mark.parametrize("shards", SHARDS)
def test_every_document_is_in_one_shard_and_batches_stay(documents, shards):
    split = parts(documents, shards)
    assert sorted(np.concatenate(split).tolist()) == list(range(len(documents)))
    whole = batch_indices(documents, BATCH_TOKENS)
    assert len(whole) == 7
    of_shards = [batch for part in split for batch in batch_indices(documents, BATCH_TOKENS, part)]
    assert sorted(of_shards) == sorted(whole)
    sizes = [len(batch_indices(documents, BATCH_TOKENS, part)) for part in split]
    assert max(sizes) - min(sizes) <= 1


# Mathematics, in float64


@pytest.mark.parametrize("shards", SHARDS)
@pytest.mark.parametrize("label_samples", [1, 2])
def test_factors_of_shards_are_those_of_the_whole(model, documents, shards, label_samples):
    blocks = tracked_blocks(model)
    split, settings = (
        parts(documents, shards),
        {"seed": 2, "batch_tokens": BATCH_TOKENS, "label_samples": label_samples},
    )
    whole = fit_covariances(model, blocks, documents, **settings)
    basis = compute_eigenbasis(whole)
    eigenvalues = fit_eigenvalues(model, blocks, documents, basis, **settings)

    def mean(fits, counts):
        filled = [(fit, count) for fit, count in zip(fits, counts, strict=True) if count]
        used = [count for _, count in filled]
        names = filled[0][0]
        return {n: torch.from_numpy(weighted_mean((fit[n].numpy() for fit, _ in filled), used)) for n in names}

    fits = [fit_covariances(model, blocks, documents, documents=part, double=True, **settings) for part in split]
    positions = [number_of_positions(documents, part) for part in split]
    assert_close(mean([fit.activation for fit in fits], positions), whole.activation, 1e-13)
    assert_close(mean([fit.gradient for fit in fits], positions), whole.gradient, 1e-13)
    fits = [fit_eigenvalues(model, blocks, documents, basis, documents=part, double=True, **settings) for part in split]
    assert_close(mean(fits, list(map(len, split))), eigenvalues, 1e-13)


# Files, in float32 as the jobs have it: a job of a shard here is what its script does


ATTRIBUTES = {"model_digest": "m", "data_digest": "d", "seed": 0}


class Job:
    """Factors, scores and self-influence in a folder, in so many shards."""

    def __init__(self, folder: Path, documents, queries, shards: int):
        self.folder, self.documents, self.shards = folder, documents, shards
        self.model = tiny_model(seed=0).float()
        self.blocks = tracked_blocks(self.model)
        self.query_gradients, _ = query_gradients(self.model, self.blocks, queries, BATCH_TOKENS)

    def path(self, kind: str, shard: int) -> Path:
        return self.folder / f"{kind}/{shard}-of-{self.shards}.h5"

    def each(self, kind: str):
        """(path, shard, documents, attributes) of every shard's job."""
        for k, part in enumerate(parts(self.documents, self.shards), start=1):
            counts = {"sequences": len(part), "positions": number_of_positions(self.documents, part)}
            yield self.path(kind, k), (k, self.shards), part, {**ATTRIBUTES, **counts, "seconds": 1.0, "peak_bytes": k}

    def files(self, kind: str) -> list[Path]:
        return [self.path(kind, k) for k in range(1, self.shards + 1)]

    def gather(self, kind: str) -> Path:
        target = self.folder / f"{kind}.h5"
        if kind in ("scores", "self-influence"):
            gather_rows(target, kind, self.files(kind), len(self.documents), ATTRIBUTES)
        else:
            gather_factor(target, kind, self.files(kind), ATTRIBUTES)
        return target

    def covariances(self):
        for path, shard, part, attributes in self.each("covariances"):
            options = {"documents": part, "double": True}
            fitted = fit_covariances(self.model, self.blocks, self.documents, 0, BATCH_TOKENS, **options)
            with create_factors(path, shard_kind("covariances", shard), attributes) as file:
                file.write(fitted)
        return stored_covariances(self.gather("covariances"), ATTRIBUTES)

    def eigenvalues(self, basis):
        for path, shard, part, attributes in self.each("eigenvalues"):
            options = {"documents": part, "double": True}
            fitted = fit_eigenvalues(self.model, self.blocks, self.documents, basis, 0, BATCH_TOKENS, **options)
            with create_factors(path, shard_kind("eigenvalues", shard), attributes) as file:
                file.write(fitted)
        return read_eigenvalues(self.gather("eigenvalues"), ATTRIBUTES)

    def scores(self, inverse):
        columns = {"c": apply_chain(self.query_gradients, self.blocks, [inverse])}
        requests = {"e": Request("c", frozenset(block.name for block in self.blocks))}
        for path, shard, part, attributes in self.each("scores"):
            keys = list(map(str, range(len(self.query_gradients[self.blocks[0].name]))))
            store = ScoreStore(path, "e", ATTRIBUTES, part, keys, keys)
            pairwise_scores(
                self.model,
                self.blocks,
                self.documents,
                columns,
                requests,
                BATCH_TOKENS,
                lambda _, places, scores, store=store, keys=keys: store.write(places, scores, keys),
                part,
            )
            with create_scores_shard(path, attributes, shard, part) as file:
                file.write("e", store.finished(), store.seal({"seconds": 1.0, "peak_bytes": shard[0]}))
        return read_scores(self.gather("scores"), "e", ATTRIBUTES)

    def self_influence(self, inverse):
        for path, shard, part, attributes in self.each("self-influence"):
            values = self_influence(self.model, self.blocks, self.documents, inverse, BATCH_TOKENS, part)
            write_self_influence(path, values.numpy(), attributes, shard, part)
        return read_self_influence(self.gather("self-influence"), ATTRIBUTES)

    def all(self):
        covariances = self.covariances()
        basis = compute_eigenbasis(covariances)
        eigenvalues = self.eigenvalues(basis)
        inverse = DampedInverse(basis, eigenvalues, Damping(relative=1e-3))
        return covariances, eigenvalues, self.scores(inverse), self.self_influence(inverse)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, documents, queries):
    return Job(tmp_path_factory.mktemp("whole"), documents, queries, 1).all()


@pytest.fixture
def three(tmp_path, documents, queries):
    job = Job(tmp_path, documents, queries, 3)
    job.all()
    return job


@pytest.mark.parametrize("shards", SHARDS)
def test_gathered_files_are_those_of_the_whole(tmp_path, documents, queries, whole, shards):
    covariances, eigenvalues, found, values = Job(tmp_path, documents, queries, shards).all()
    assert_close(covariances.activation, whole[0].activation, 1e-7)
    assert_close(covariances.gradient, whole[0].gradient, 1e-7)
    assert_close(eigenvalues, whole[1], 1e-7)
    attributes = found.attributes
    assert np.linalg.norm(found.matrix - whole[2].matrix) < 1e-6 * np.linalg.norm(whole[2].matrix)
    np.testing.assert_allclose(values, whole[3], rtol=1e-6)
    assert attributes["kind"] == "scores"
    assert attributes["sequences"] == len(documents)
    assert attributes["positions"] == number_of_positions(documents)
    assert attributes["seconds"] == shards
    assert attributes["peak_bytes"] == shards


def test_a_shard_of_another_model_or_seed_is_refused(three):
    for key in ("model_digest", "data_digest", "seed"):
        with pytest.raises(ForebearError, match=rf"1-of-3\.h5: was made with another {key.replace('_', ' ')} .*: rm "):
            gather_factor(three.folder / "new.h5", "covariances", three.files("covariances"), {**ATTRIBUTES, key: "x"})
    assert not (three.folder / "new.h5").exists()


@pytest.mark.parametrize("kind", ["covariances", "eigenvalues", "scores", "self-influence"])
def test_a_missing_damaged_or_misplaced_shard_is_refused(three, kind):
    second, whole = three.path(kind, 2), (three.folder / f"{kind}.h5").read_bytes()

    def refused(words: str):
        with pytest.raises(ForebearError, match=words):
            three.gather(kind)
        assert (three.folder / f"{kind}.h5").read_bytes() == whole

    content = second.read_bytes()
    second.write_bytes(content[: len(content) // 2])
    refused(r"2-of-3\.h5: the file is damaged.*: rm ")
    shutil.copy(three.path(kind, 1), second)
    refused(rf"2-of-3\.h5: holds {kind}, shard 1 of 3, not {kind}, shard 2 of 3; delete it and run again: rm ")
    second.unlink()
    refused(r"2-of-3\.h5: there is no such file; run the rule that makes it")


def test_a_shard_is_not_taken_for_the_whole(three):
    with pytest.raises(ForebearError, match="holds eigenvalues, shard 1 of 3, not eigenvalues; delete it"):
        read_eigenvalues(three.path("eigenvalues", 1))


def test_shards_of_different_jobs_are_refused(three):
    with h5py.File(three.path("covariances", 3)) as file:
        attributes = {**file.attrs, "params_digest": "other"}
        del attributes["content"]
    part = parts(three.documents, 3)[2]
    fitted = fit_covariances(three.model, three.blocks, three.documents, 0, BATCH_TOKENS, documents=part)
    with create_factors(three.path("covariances", 3), shard_kind("covariances", (3, 3)), attributes) as file:
        file.write(fitted)
    with pytest.raises(ForebearError, match=r"3-of-3\.h5: was made with another params digest than .*1-of-3\.h5"):
        three.gather("covariances")


def test_shards_of_fewer_blocks_are_refused(three):
    part, blocks = parts(three.documents, 3)[2], three.blocks[1:]
    _, shard, _, attributes = list(three.each("covariances"))[2]
    fitted = fit_covariances(three.model, blocks, three.documents, 0, BATCH_TOKENS, documents=part)
    with create_factors(three.path("covariances", 3), shard_kind("covariances", shard), attributes) as file:
        file.write(fitted)
    with pytest.raises(ForebearError, match=r"3-of-3\.h5: has other blocks than .*1-of-3\.h5; delete both"):
        three.gather("covariances")


def test_shards_that_split_the_documents_otherwise_are_refused(three):
    """As if another `batch_tokens` had made one of them."""
    other = shard_documents(three.documents, 2 * BATCH_TOKENS, 3, 3)
    assert not np.array_equal(other, parts(three.documents, 3)[2])
    _, shard, _, attributes = list(three.each("self-influence"))[2]
    write_self_influence(three.path("self-influence", 3), np.ones(len(other)), attributes, shard, other)
    with pytest.raises(ForebearError, match=r"do not have each of the 20 documents once; delete them .*: rm -r "):
        three.gather("self-influence")


def test_an_interrupted_shard_is_continued_unless_its_documents_are_others(tmp_path):
    path, made_from = tmp_path / "s.h5", (ATTRIBUTES, np.array([1, 4, 6]), "ab", "ab")
    first = ScoreStore(path, "e", *made_from)
    first.write(np.array([6, 1]), np.array([[6.0, 6.0], [1.0, 1.0]]), "ab")
    first._store.file.close()  # killed here
    again = ScoreStore(path, "e", *made_from)
    assert again.documents[again.missing.any(1)].tolist() == [4]
    again.write(np.array([4]), np.array([[4.0, 4.0]]), "ab")
    assert again.finished()[:, 0].tolist() == [1, 4, 6]
    again.seal({})
    assert ScoreStore(path, "e", ATTRIBUTES, np.array([1, 4, 7]), "ab", "ab").missing.all()


def test_one_shard_is_the_whole_to_the_last_bit(whole, tmp_path, documents, queries):
    job = Job(tmp_path, documents, queries, 1)
    job.all()
    fitted = fit_covariances(job.model, job.blocks, documents, 0, BATCH_TOKENS)
    basis = compute_eigenbasis(fitted)
    eigenvalues = fit_eigenvalues(job.model, job.blocks, documents, basis, 0, BATCH_TOKENS)
    for found, expected in ((whole[0].activation, fitted.activation), (whole[1], eigenvalues)):
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


# The workflow itself

SCORES = "results/tiny/scores/pretraining/at_pretraining.h5"
NORMALISED = "results/tiny/scores/pretraining/multistage-relatif.h5"
FACTORS = "results/tiny/factors/pretraining"


def shared(folder: Path, shards: int, *arguments: str) -> str:
    """Run the study in so many shards up to its scores; what Snakemake printed."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["studies"]["tiny"]["shards"] = shards
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    run = snakemake(folder, NORMALISED, *arguments)
    assert run.returncode == 0, run.stdout
    return run.stdout


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A chain of one, scored by one job a pass."""
    config = yaml.safe_load((ROOT / "tests/tiny.yaml").read_text())
    study = config["studies"]["tiny"]
    study.update(stages=study["stages"][:1], batch_tokens=128, estimators=["multistage-ekfac", "multistage-relatif"])
    folder = copy_workflow(tmp_path_factory.mktemp("finished"), config)
    shared(folder, 1)
    return folder


def datasets(path: Path) -> dict[str, torch.Tensor]:
    found = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: found.update({name: torch.from_numpy(item[()])}) if hasattr(item, "shape") else None
        )
    return found


@pytest.mark.slow
@pytest.mark.parametrize("shards", [3, 7])
def test_the_workflow_gives_the_same_in_any_number_of_shards(finished, tmp_path, shards):
    folder = shutil.copytree(finished, tmp_path / "shared", copy_function=shutil.copy2)
    output = shared(folder, shards)
    assert not re.search(r"^train_stage\s", output, re.MULTILINE)  # in the list of jobs
    for name in ("covariances", "eigenvalues"):
        whole = datasets(finished / FACTORS / f"{name}.h5")
        assert_close(datasets(folder / FACTORS / f"{name}.h5"), whole, 1e-6)
    for name, estimator in ((SCORES, "multistage-ekfac"), (NORMALISED, "multistage-relatif")):
        scores, whole = (read_scores(path / name, estimator).matrix for path in (folder, finished))
        assert np.linalg.norm(scores - whole) < 1e-6 * np.linalg.norm(whole)
    assert not list((folder / FACTORS).glob("*/*"))  # shards are removed when they are put together
    assert "Nothing to be done" in shared(folder, shards)
    if shards == 3:
        what_happens_to_damaged_stores(folder)


def what_happens_to_damaged_stores(folder: Path) -> None:
    """What one shard has lost is computed again, alone."""
    logs = [
        folder / f"results/tiny/logs/compute_pairwise_scores/pretraining_at_pretraining/{k}-of-3.log" for k in (1, 2, 3)
    ]
    expected = read_scores(folder / SCORES, "multistage-ekfac").matrix
    for damage in (Path.unlink, lambda store: store.write_bytes(store.read_bytes()[:1000])):
        for path in (SCORES, NORMALISED):
            (folder / path).unlink()
        damage(folder / "results/tiny/scores/pretraining/at_pretraining/.store/2-of-3/multistage-ekfac.h5")
        shared(folder, 3)
        computed = [re.search(r"^scores: ", log.read_text(), re.MULTILINE) is not None for log in logs]
        assert computed == [False, True, False]
        assert np.array_equal(read_scores(folder / SCORES, "multistage-ekfac").matrix, expected)
