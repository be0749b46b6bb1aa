"""Checkpoints of folders: linked, converted from pickles without running them, and checked by their digests."""

import hashlib

import pytest
import torch
from safetensors.torch import load_file, save_file

from edited_checkpoints import Malicious
from forebear.artifacts.digests import file_digest
from forebear.artifacts.manifests import read_manifest, write_manifest
from forebear.data.sequences import encode
from forebear.errors import ForebearError
from forebear.models.answers import answer_queries
from forebear.models.checkpoints import (
    FILES,
    link_checkpoint,
    load_encoder,
    load_model,
    load_tokenizer,
    save_checkpoint,
)
from forebear.models.heads import with_head
from published import SENTENCES, own_code_checkpoint, tiny_checkpoint


def test_a_pickle_that_runs_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tiny_checkpoint(tmp_path / "model", pickled=True)
    torch.save({"weight": Malicious()}, folder / "pytorch_model.bin")
    with pytest.raises(ForebearError, match="cannot be read as plain weights"):
        link_checkpoint(folder, tmp_path / "linked")
    assert not (tmp_path / "harm").exists()


def test_shards_load_and_a_changed_or_missing_one_is_refused(tmp_path):
    folder = tiny_checkpoint(tmp_path / "published", shard_size="8KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    linked = tmp_path / "linked"
    link_checkpoint(folder, linked)
    write_manifest(linked, {"stage": "pretraining"})
    digests = "".join(map(file_digest, shards))
    assert read_manifest(linked / "manifest.json")["model_digest"] == hashlib.sha256(digests.encode()).hexdigest()
    whole = tiny_checkpoint(tmp_path / "whole")
    assert all(
        torch.equal(a, b) for a, b in zip(load_model(linked).parameters(), load_model(whole).parameters(), strict=True)
    )
    shards[0].write_bytes(shards[0].read_bytes() + b"0")
    with pytest.raises(ForebearError, match=rf"linked: {shards[0].name} is not what was written there; .* rm -r "):
        read_manifest(linked / "manifest.json")
    shards[0].unlink()
    with pytest.raises(ForebearError, match="the model there is damaged") as caught:
        read_manifest(linked / "manifest.json")
    assert str(caught.value).endswith(f"run again: rm -r {linked}")  # and nothing of the publisher's folder


@pytest.mark.parametrize("pickled", [False, True])
def test_a_checkpoint_without_all_its_weights_is_refused(tmp_path, pickled: bool):
    """Transformers would draw them at random, and only warn."""
    folder = tiny_checkpoint(tmp_path / "model", pickled=pickled)
    file = folder / ("pytorch_model.bin" if pickled else "model.safetensors")
    weights = torch.load(file, weights_only=True) if pickled else load_file(file)
    removed = next(name for name in weights if name.endswith("dense_h_to_4h.weight"))
    del weights[removed]
    torch.save(weights, file) if pickled else save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ForebearError, match=f"has no weights for {removed}"):
        link_checkpoint(folder, tmp_path / "linked") if pickled else load_model(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_any_changed_file_of_a_model_is_noticed(tmp_path, name: str):
    folder = tiny_checkpoint(tmp_path)
    write_manifest(folder, {})
    read_manifest(folder / "manifest.json")
    (folder / name).write_bytes((folder / name).read_bytes() + b" ")
    with pytest.raises(ForebearError, match=rf"{name} is not what was written there"):
        read_manifest(folder / "manifest.json")


@pytest.mark.parametrize(
    ("old", "new"), [('"model_digest": "', '"model_digest": "0'), ('"files"', '"file"'), ("{", "")]
)
def test_a_manifest_changed_by_hand_is_noticed(tmp_path, old: str, new: str):
    folder = tiny_checkpoint(tmp_path)
    write_manifest(folder, {})
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace(old, new, 1))
    with pytest.raises(ForebearError, match="delete it and run again"):
        read_manifest(manifest)


def test_a_folder_without_config_or_weights_is_refused(tmp_path):
    folder = tiny_checkpoint(tmp_path / "published")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ForebearError, match=r"neither safetensors nor pytorch_model.bin"):
        link_checkpoint(folder, tmp_path / "linked")
    (folder / "config.json").unlink()
    with pytest.raises(ForebearError, match=r"has no config.json"):
        link_checkpoint(folder, tmp_path / "linked")


def test_a_tokenizer_without_special_tokens_works(tmp_path):
    folder = tiny_checkpoint(tmp_path / "published")
    tokenizer, model = load_tokenizer(folder), load_model(folder)
    assert tokenizer.bos_token_id is tokenizer.eos_token_id is tokenizer.pad_token_id is None
    records = [{"id": "1", "text": SENTENCES[0]}, {"id": "2", "prompt": "Which city ? Answer :", "completion": " Rome"}]
    text, pair = encode(records, tokenizer, 32)
    assert tokenizer.decode(text.ids) == SENTENCES[0]
    assert tokenizer.decode(pair.ids[pair.first_target :]) == " Rome"
    (answer,) = answer_queries(model, tokenizer, records[1:], 32)
    assert answer["loss"] > 0


def test_own_code_is_one_sentence_where_it_is_not_trusted_and_never_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = own_code_checkpoint(tmp_path / "published")
    for load in (load_model, load_encoder, lambda path: link_checkpoint(path, tmp_path / "linked")):
        with pytest.raises(
            ForebearError, match=r"published: the model brings Python code .* `trust_remote_code: true`"
        ):
            load(folder)
    assert not (tmp_path / "linked/modeling_own.py").exists()
    assert not (tmp_path / "run.txt").exists()


def test_trusted_code_runs_is_said_and_has_its_digest(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    linked = tmp_path / "linked"
    link_checkpoint(own_code_checkpoint(tmp_path / "published"), linked, trust_remote_code=True)
    write_manifest(linked, {})
    model = load_model(linked, trust_remote_code=True)
    assert type(model).__name__ == "OwnForCausalLM"
    assert (tmp_path / "run.txt").exists()
    assert capsys.readouterr().out.count("code that came with the model may be run") == 1
    load_model(tiny_checkpoint(tmp_path / "plain"), trust_remote_code=True)
    assert capsys.readouterr().out == ""

    # What is trained from it is without the code, and finds it where it was, under the digests there.
    trained = tmp_path / "trained"
    save_checkpoint(trained, model, load_tokenizer(linked, True))
    assert {file.name for file in trained.iterdir()} == {*FILES, "manifest.json"}
    again = load_model(trained, trust_remote_code=True)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    save_checkpoint(tmp_path / "twice", again, load_tokenizer(trained, True))
    assert type(load_model(tmp_path / "twice", trust_remote_code=True)).__name__ == "OwnForCausalLM"
    with pytest.raises(ForebearError, match="which is not run"):
        load_model(trained)
    with pytest.raises(ForebearError, match="has no classifier on the same base"):
        with_head(again, "classification", ["a", "b"], 0)
    with (tmp_path / "published/modeling_own.py").open("a") as handle:
        handle.write("\n")
    with pytest.raises(ForebearError, match=r"modeling_own\.py is not what was written there"):
        load_model(trained, trust_remote_code=True)


def test_code_that_is_missing_or_in_another_repository_is_one_sentence(tmp_path):
    folder = own_code_checkpoint(tmp_path / "published")
    (folder / "configuration_own.py").rename(tmp_path / "configuration_own.py")
    with pytest.raises(ForebearError, match=r"published: the model cannot be loaded .*configuration_own\.py"):
        link_checkpoint(folder, tmp_path / "linked", trust_remote_code=True)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"configuration_own', '"somebody/else--configuration_own'))
    with pytest.raises(ForebearError, match="its code is in another repository"):
        link_checkpoint(folder, tmp_path / "linked", trust_remote_code=True)
