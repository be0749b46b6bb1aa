"""What goes wrong ends in one sentence that names the file and the remedy, and nothing wrong is used."""

import errno
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from conftest import random_examples, tiny_model
from disks import small_disk
from forebear.artifacts.hdf5 import FORMAT
from forebear.config.reading import read_config
from forebear.data.batches import collate
from forebear.data.sequences import encode
from forebear.errors import ForebearError
from forebear.factors.files import create_factors, read_eigenvalues
from forebear.gradients.blocks import tracked_blocks
from forebear.gradients.capture import capture
from forebear.models.checkpoints import check_context
from forebear.models.losses import evaluate_losses
from forebear.models.training import build_tokenizer
from forebear.runtime.atomic import atomic_files, atomic_path
from forebear.scores.files import ScoreStore, write_scores
from forebear.scores.pairwise import Request, pairwise_scores

# Files that are not what they say


@pytest.fixture
def eigenvalues(tmp_path) -> Path:
    path = tmp_path / "eigenvalues.h5"
    with create_factors(path, "eigenvalues", {"model_digest": "m", "data_digest": "d", "seed": 0}) as file:
        file.write({"a": torch.ones(20, 20)})
    return path


@pytest.mark.parametrize("key", ["model_digest", "data_digest", "seed"])
def test_factors_of_another_model_data_set_or_seed_are_refused(eigenvalues, key: str):
    with pytest.raises(ForebearError, match=rf"eigenvalues\.h5: was made with another {key.replace('_', ' ')} .*: rm "):
        read_eigenvalues(eigenvalues, {key: "other"})


def test_another_format_version_is_refused(eigenvalues):
    with h5py.File(eigenvalues, "r+") as file:
        file.attrs["format"] = "forebear 0"
    with pytest.raises(
        ForebearError, match=f"has the format 'forebear 0', and this version of forebear reads '{FORMAT}'"
    ):
        read_eigenvalues(eigenvalues)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(eigenvalues, share: float):
    eigenvalues.write_bytes(eigenvalues.read_bytes()[: int(share * eigenvalues.stat().st_size)])
    with pytest.raises(ForebearError, match=r"eigenvalues\.h5: .* delete it and run again: rm "):
        read_eigenvalues(eigenvalues)


def test_a_number_changed_with_h5py_is_noticed(eigenvalues):
    with h5py.File(eigenvalues, "r+") as file:
        file["a/eigenvalues"][3, 4] = 2
    with pytest.raises(ForebearError, match="its content is not what was written there; delete it"):
        read_eigenvalues(eigenvalues)


def test_a_digest_changed_with_h5py_is_noticed(eigenvalues):
    with h5py.File(eigenvalues, "r+") as file:
        file.attrs["model_digest"] = "other"
    with pytest.raises(ForebearError, match="its content is not what was written there"):
        read_eigenvalues(eigenvalues, {"model_digest": "other"})


def test_no_changed_byte_is_read(eigenvalues):
    """Every damage either is refused in a sentence, or leaves the values as they were."""
    whole = eigenvalues.read_bytes()
    generator, refused = np.random.default_rng(0), 0
    for place in generator.integers(0, len(whole), 150):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        eigenvalues.write_bytes(damaged)
        try:
            assert torch.equal(read_eigenvalues(eigenvalues)["a"], torch.ones(20, 20))
        except ForebearError:
            refused += 1
    assert refused > 20


# Writing that fails


WRITE_UNDER_A_LIMIT = """
import resource, sys
from forebear.runtime.job import start
from snakemake.iocontainers import Params
from types import SimpleNamespace
start(SimpleNamespace(log=[sys.argv[2]], threads=1, input=[], output=[], params=Params(fromdict=dict(recipe="r", results="results"))))
import torch
from forebear.factors.files import create_factors
limit = int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
with create_factors(sys.argv[1], "eigenvalues", {}) as file:
    file.write({f"block{k}": torch.ones(int(sys.argv[4])) for k in range(int(sys.argv[5]))})
"""


@pytest.mark.parametrize(("size", "blocks"), [(1_000_000, 1), (10, 3000)])
def test_a_disk_that_is_full_is_one_sentence_and_leaves_nothing(tmp_path, size: int, blocks: int):
    """A limit on the file's size stands for the full disk; HDF5 fails at once, or only when it closes the file."""
    path, log = tmp_path / "results/eigenvalues.h5", tmp_path / "job.log"
    command = [sys.executable, "-c", WRITE_UNDER_A_LIMIT, path, log, "200000", str(size), str(blocks)]
    assert subprocess.run(command, check=False).returncode == 1
    last = log.read_text().splitlines()[-1]
    assert (
        last
        == f"error: {path}: could not be written (File too large); raise the limit on file sizes (ulimit -f) and run again."
    )
    assert list(path.parent.iterdir()) == []


@pytest.fixture
def disk(tmp_path):
    """A file system of one megabyte, where this user may mount one."""
    with small_disk(tmp_path, 1) as mounted:
        if not mounted:
            pytest.skip("this user may not mount a file system; the tests with a limit on file sizes ran")
        yield tmp_path


def test_a_full_disk_leaves_the_finished_file(disk):
    path = disk / "e.h5"
    with create_factors(path, "eigenvalues", {}) as file:
        file.write({"a": torch.ones(10)})
    with (
        pytest.raises(ForebearError, match=r"e\.h5: could not be written \(No space left on device\); free some space"),
        create_factors(path, "eigenvalues", {}) as file,
    ):
        file.write({"a": torch.ones(1_000_000)})
    assert torch.equal(read_eigenvalues(path)["a"], torch.ones(10))
    assert list(disk.iterdir()) == [path]


def test_a_checkpoint_on_a_full_disk_leaves_nothing(disk):
    with (
        pytest.raises(ForebearError, match=rf"{disk}: could not be written \(No space left on device\)"),
        atomic_files(disk) as folder,
    ):
        save_file({"weight": torch.ones(1_000_000)}, folder / "model.safetensors")
    assert list(disk.iterdir()) == []


def test_errors_of_other_files_are_not_taken_for_a_full_disk(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "table.csv"):
        (tmp_path / "missing.jsonl").read_text()
    with pytest.raises(PermissionError), atomic_path(tmp_path / "results/table.csv"):
        raise PermissionError(errno.EACCES, "not for you", tmp_path / "corpus/documents.jsonl")


ORPHAN = """
import sys
import numpy as np
from forebear.scores.files import ScoreStore
store = ScoreStore(sys.argv[1], "e", {}, np.arange(2), "ab", "ab")
store.write(np.array([0]), np.ones((1, 2)), "ab")
print("waiting", flush=True)
input()
store.write(np.array([1]), np.ones((1, 2)), "ab")
store.seal({})
"""


def test_a_matrix_that_an_orphan_still_writes_is_refused(tmp_path):
    path = tmp_path / "s.h5"
    command = [sys.executable, "-c", ORPHAN, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as orphan:
        assert orphan.stdout.readline() == "waiting\n"
        with pytest.raises(
            ForebearError,
            match=r"\.store/s/e\.h5: could not be written.* another process has it open .process \d+ .*killed run",
        ):
            ScoreStore(path, "e", {}, np.arange(2), "ab", "ab")
        orphan.communicate("\n")
    assert (ScoreStore(path, "e", {}, np.arange(2), "ab", "ab").finished() == 1).all()


# Numbers that are not finite


@pytest.fixture
def broken_model():
    """A model whose loss is NaN on sequences with token 5, and on no other."""
    model = tiny_model(seed=0)
    with torch.no_grad():
        model.get_input_embeddings().weight[5] = torch.nan
    return model


@pytest.fixture
def documents():
    """Sequences of different lengths, token 5 in the third and the seventh alone."""
    examples = random_examples(1, [7, 4, 6, 5, 9, 3, 8, 4])
    for k, example in enumerate(examples):
        example.ids[example.ids == 5] = 6
        example.ids[1] = 5 if k in (2, 6) else 6
    return examples


def test_documents_without_a_finite_loss_are_named(broken_model, documents):
    for compute in (
        lambda: evaluate_losses(broken_model, documents),
        lambda: capture(broken_model, tracked_blocks(broken_model), collate(documents, range(8))),
    ):
        with pytest.raises(ForebearError, match=r"the loss is nan on the documents [26], [26] \(counted from 0\)"):
            compute()


def test_a_chosen_document_is_named_by_its_place_among_all(broken_model, documents):
    with pytest.raises(ForebearError, match="on the documents 6 "):
        evaluate_losses(broken_model, documents, np.array([3, 5, 6]))


def test_a_continued_scoring_pass_names_documents_by_their_place_among_all(broken_model, documents):
    blocks = tracked_blocks(broken_model)
    columns = {"gradient": {block.name: torch.ones(1, *block.shape).double() for block in blocks}}
    requests = {"gradient-dot": Request("gradient", frozenset(block.name for block in blocks))}
    with pytest.raises(ForebearError, match="on the documents 6 "):
        pairwise_scores(
            broken_model, blocks, documents, columns, requests, 64, write=lambda *_: None, documents=range(3, 8)
        )


def test_factors_that_are_not_finite_are_not_written(tmp_path):
    with (
        pytest.raises(ForebearError, match="layers/0/mlp: its eigenvalues has values that are not finite"),
        create_factors(tmp_path / "e.h5", "eigenvalues", {}) as file,
    ):
        file.write({"layers/0/mlp": torch.tensor([[1.0, torch.inf]])})
    assert list(tmp_path.iterdir()) == []


def test_scores_that_are_not_finite_name_the_documents(tmp_path):
    scores = np.array([[1.0, 2.0], [np.nan, 1.0], [1.0, np.inf]], np.float32)
    with pytest.raises(
        ForebearError, match=r"s\.h5: the scores of the documents 1, 2 \(counted from 0\) are not finite"
    ):
        write_scores(tmp_path / "s.h5", "e", scores, {})
    store = ScoreStore(tmp_path / "s.h5", "e", {}, np.arange(5), "ab", "ab")
    with pytest.raises(ForebearError, match="the scores of the documents 4, 0 "):
        store.write(np.array([3, 4, 0]), scores, "ab")
    assert store.missing.all()


# Documents and configs


def test_a_document_longer_than_the_context_is_cut_and_counted(capsys):
    records = [{"id": "1", "text": "a b c d e f"}, {"id": "2", "text": "a b"}]
    examples = encode(records, build_tokenizer(records), 4)
    assert [len(example.ids) for example in examples] == [4, 4]
    assert "1 of 2 sequences were longer than max_length and were cut to 4 tokens" in capsys.readouterr().out


def test_sequences_longer_than_the_model_has_positions_are_refused():
    check_context(tiny_model(seed=0), 32)
    with pytest.raises(ForebearError, match="`max_length` is 33, but the model has 32 positions"):
        check_context(tiny_model(seed=0), 33)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("study: a\nstudies: {}\nstudy: b\n", "line 3: the key `study` was already given in line 1"),
        (
            "studies:\n  a:\n    seed: 1\n    top: 2\n    seed: 3\n",
            "line 5: the key `seed` was already given in line 3",
        ),
        (
            "studies: {a: {stages: [{name: x}, {name: y, name: z}]}}\n",
            "line 1: the key `name` was already given in line 1",
        ),
    ],
)
def test_a_duplicate_key_is_named_with_file_and_line(tmp_path, text: str, words: str):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ForebearError, match=rf"mine\.yaml, {words}"):
        read_config(tmp_path / "mine.yaml")


def test_a_key_in_two_sections_is_no_duplicate(tmp_path):
    (tmp_path / "mine.yaml").write_text("studies: {a: {seed: 1}, b: {seed: 1}}\n")
    with pytest.raises(ForebearError, match="the key `study` is missing"):
        read_config(tmp_path / "mine.yaml")
