"""An inverse is opened with the damping, α and scale that the config says, from factors of that model and data alone."""

import shutil
from pathlib import Path

import pytest
import torch

from forebear.artifacts.manifests import point_digests
from forebear.data.corpora.facts import build_facts
from forebear.data.records import write_records
from forebear.data.sequences import encode
from forebear.errors import ForebearError
from forebear.factors.eigenvalue_functions import Damping
from forebear.factors.files import create_factors
from forebear.factors.fit import fit_covariances, fit_eigenvalues
from forebear.factors.kronecker import compute_eigenbasis, kfac_eigenvalues
from forebear.gradients.blocks import tracked_blocks
from forebear.models.checkpoints import save_checkpoint
from forebear.models.training import build_model, build_tokenizer
from forebear.queries.chain import DampedInverse, SourceSegment, apply_chain
from forebear.queries.open_chain import open_inverse

MODEL = {
    "model_type": "gpt_neox",
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
TRAINING = {"mean_learning_rate": 1e-3, "steps": 500, "adam_scale": 0.05}
LINK = {"point": "stage", "damping": {"relative": 0.1}, "alpha": 0.3, "scaled": True, "seed": 4}
POSITIONS, SEQUENCES = 60, 8


class Stage:
    """A stage's files, and the factors that are in them."""

    def __init__(self, folder: Path):
        records = build_facts(countries=4, query_countries=2, glosses=False)["pretraining"][:SEQUENCES]
        tokenizer = build_tokenizer(records)
        model = build_model(MODEL, tokenizer, 0).eval()
        self.folder, self.blocks = folder, tracked_blocks(model)
        self.records, self.manifest = folder / "records.jsonl", folder / "model/manifest.json"
        save_checkpoint(self.manifest.parent, model, tokenizer, training=TRAINING)
        write_records(self.records, records)
        examples = encode(records, tokenizer, 16)
        self.basis = compute_eigenbasis(fit_covariances(model, self.blocks, examples, 0, 64))
        self.values = fit_eigenvalues(model, self.blocks, examples, self.basis, 0, 64)
        made_from = {"seed": 4, "positions": POSITIONS, "sequences": SEQUENCES}
        attributes = {**point_digests(self.manifest, self.records), **made_from}
        for kind, factors in {"eigenbasis": self.basis, "eigenvalues": self.values}.items():
            with create_factors(folder / f"{kind}.h5", kind, attributes) as file:
                file.write(factors)

    def open(self, link=LINK, eigenvalues="eigenvalues.h5", **options) -> DampedInverse | SourceSegment:
        values = eigenvalues and self.folder / eigenvalues
        files = (self.manifest, self.records, self.folder / "eigenbasis.h5", values)
        return open_inverse(link, *files, self.blocks, **options)

    def vectors(self) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        return {block.name: torch.randn(2, *block.shape, generator=generator) for block in self.blocks}

    def assert_same(self, one, other) -> None:
        columns = [apply_chain(self.vectors(), self.blocks, [inverse]) for inverse in (one, other)]
        assert all(torch.equal(columns[0][block.name], columns[1][block.name]) for block in self.blocks)


@pytest.fixture(scope="module")
def stage(tmp_path_factory) -> Stage:
    return Stage(tmp_path_factory.mktemp("stage"))


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize(
    ("alpha", "scaled", "pull", "scale"),
    [(0.3, True, 0.3, 0.3), (0.3, False, 0.3, 1.0), ("auto", True, 0.1, 0.1), (None, False, 0.0, 1.0)],
)
def test_damping_and_alpha_are_the_configs(stage, stored, alpha, scaled, pull, scale):
    """`auto` is 1/t with AdamW's t: 0.05 / (1e-3 · 500)."""
    inverse = stage.open({**LINK, "alpha": alpha, "scaled": scaled}, stored=stored)
    assert (inverse.name, inverse.pull, inverse.scale) == ("stage", pytest.approx(pull), pytest.approx(scale))
    stage.assert_same(
        inverse, DampedInverse(stage.basis, stage.values, Damping(relative=0.1), inverse.pull, inverse.scale)
    )


def test_without_eigenvalues_they_are_kfacs(stage):
    values = kfac_eigenvalues(stage.basis, stage.blocks, POSITIONS / SEQUENCES)
    stage.assert_same(stage.open(eigenvalues=None), DampedInverse(stage.basis, values, Damping(relative=0.1), 0.3, 0.3))


@pytest.mark.parametrize(("unrolled", "time"), [("sgd", 0.5), ("adam", 10.0)])
@pytest.mark.parametrize("later", [False, True])
def test_a_segment_has_the_time_of_its_optimizer(stage, unrolled, time, later):
    segment = stage.open({**LINK, "scaled": later}, unrolled=unrolled, stored=True)
    assert (segment.name, segment.time, segment.later) == ("stage", pytest.approx(time), later)
    stage.assert_same(segment, SourceSegment(stage.basis, stage.values, segment.time, later))


@pytest.mark.parametrize("unrolled", [None, "sgd"])
@pytest.mark.parametrize("changed", ["labels", "records", "model"])
def test_factors_of_another_seed_other_data_or_another_model_are_refused(stage, tmp_path, unrolled, changed):
    other = shutil.copytree(stage.folder, tmp_path / "other")
    files = [other / "model/manifest.json", other / "records.jsonl", other / "eigenbasis.h5", other / "eigenvalues.h5"]
    link = {**LINK, "seed": 5} if changed == "labels" else LINK
    if changed == "records":
        files[1].write_text(files[1].read_text() + files[1].read_text())
    if changed == "model":
        records = build_facts(countries=4, query_countries=2, glosses=False)["pretraining"]
        tokenizer = build_tokenizer(records)
        save_checkpoint(files[0].parent, build_model(MODEL, tokenizer, 1), tokenizer, training=TRAINING)
    with pytest.raises(ForebearError, match=r"eigenbasis\.h5"):
        open_inverse(link, *files, stage.blocks, unrolled)
