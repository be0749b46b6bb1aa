"""The tokenizer of a checkpoint that somebody brings: whole, readable, in step with the embedding, or one sentence."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from copies import ROOT
from edited_checkpoints import LFS, edited_config, opened, refused
from forebear.data.sequences import encode
from forebear.errors import ForebearError
from forebear.models.checkpoints import link_checkpoint, load_model, load_tokenizer, save_checkpoint
from forebear.models.heads import position_logits
from forebear.models.training import build_tokenizer
from published import SENTENCES, tiny_checkpoint

FAMILIES = ["llama", "gpt2", "gpt_neox", "opt", "bloom", "qwen2", "mistral"]


def without_tokenizer(folder: Path, kind: str) -> dict:
    """A model's folder without any file of its tokenizer; returns what tokenizer.json had."""
    tiny_checkpoint(folder, kind)
    content = json.loads((folder / "tokenizer.json").read_text())
    for file in folder.glob("tokenizer*"):
        file.unlink()
    return content


def bpe(folder: Path, content: dict, *names: str) -> None:
    """The same as GPT-2's pair of files, or one of them."""
    merges = "\n".join(" ".join(pair) for pair in content["model"]["merges"])
    files = {"vocab.json": json.dumps(content["model"]["vocab"]), "merges.txt": f"#version: 0.2\n{merges}\n"}
    for name in names:
        (folder / name).write_text(files[name])


INCOMPLETE = {
    "nothing": (lambda folder, _: None, "has no tokenizer: neither tokenizer.json, .*; copy the tokenizer's files"),
    "its config alone": (
        lambda folder, _: (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}'),
        "has no tokenizer but tokenizer_config.json",
    ),
    "cut": (
        lambda folder, content: (folder / "tokenizer.json").write_text(json.dumps(content)[:200]),
        r"tokenizer\.json: cannot be read as JSON",
    ),
    "an empty object": (
        lambda folder, _: (folder / "tokenizer.json").write_text("{}"),
        "its tokenizer (cannot be loaded|knows no words)",
    ),
    "no words": (
        lambda folder, content: (folder / "tokenizer.json").write_text(
            json.dumps({**content, "model": {**content["model"], "vocab": {}, "merges": []}})
        ),
        "its tokenizer (cannot be loaded|knows no words)",
    ),
    "a vocabulary without merges": (
        lambda folder, content: bpe(folder, content, "vocab.json"),
        r"vocab\.json is there without merges\.txt",
    ),
    "merges without a vocabulary": (
        lambda folder, content: bpe(folder, content, "merges.txt"),
        r"merges\.txt is there without vocab\.json",
    ),
    "an empty model": (lambda folder, _: (folder / "tokenizer.model").write_bytes(b""), r"tokenizer\.model: is empty"),
    "a pointer": (
        lambda folder, _: (folder / "tokenizer.model").write_text(LFS),
        r"tokenizer\.model: is a Git LFS poi",
    ),
    "noise": (
        lambda folder, _: (folder / "tokenizer.model").write_bytes(b"\x00\xff" * 100),
        "its tokenizer (cannot be loaded|knows no words)",
    ),
    "a class that nobody knows": (
        lambda folder, _: (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "OwnTokenizer"}'),
        "has no tokenizer but tokenizer_config.json",
    ),
}


@pytest.mark.parametrize("what", INCOMPLETE)
@pytest.mark.parametrize("kind", FAMILIES)
def test_an_incomplete_tokenizer_is_one_sentence(tmp_path, kind: str, what: str):
    """What the library makes of these is a traceback, or a tokenizer of one token, by family."""
    folder = tmp_path / "model"
    content = without_tokenizer(folder, kind)
    write, words = INCOMPLETE[what]
    write(folder, content)
    refused(folder, words)


@pytest.mark.parametrize("kind", ["gpt2", "opt", "qwen2"])
def test_a_pair_of_files_is_a_tokenizer(tmp_path, kind: str):
    """Its end token is the class's own, so that the embedding needs a row for it."""
    folder = tmp_path / "model"
    content = without_tokenizer(folder, kind)
    bpe(folder, content, "vocab.json", "merges.txt")
    refused(folder, "its tokenizer has 301 tokens, but the model's embedding has 300 rows")
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(304)  # more rows than tokens are no mistake
    model.save_pretrained(folder)
    opened(folder)
    tokenizer = load_tokenizer(tmp_path / "model-linked")
    assert tokenizer.decode(encode([{"id": "1", "text": SENTENCES[0]}], tokenizer, 32, end=False)[0].ids)


def test_a_tokenizer_larger_than_the_embedding_is_refused_with_both_numbers(tmp_path):
    """Also where only a token's id is beyond the embedding, and where the tokenizer is that of a stage before."""
    folder = tiny_checkpoint(tmp_path / "model", "llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    size = len(tokenizer)
    tokenizer.add_tokens(["<|tool|>", "<|end|>"])
    tokenizer.save_pretrained(folder)
    refused(folder, f"its tokenizer has {size + 2} tokens, but the model's embedding has {size} rows; take the")


WITHOUT_PROTOBUF = """
import sys
class Hidden:  # it is not installed
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "google":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden())
from pathlib import Path
from forebear.models.checkpoints import load_tokenizer
from forebear.errors import ForebearError
from forebear.models.heads import position_logits
try:
    tokenizer = load_tokenizer(Path(sys.argv[1]))
    print(len(tokenizer), tokenizer("The capital of Cuba")["input_ids"])
except ForebearError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["LlamaTokenizer", None])
def test_packages_that_a_tokenizer_needs_are_named(tmp_path, kind: str | None):
    """Without them the library makes a tokenizer of special tokens alone."""
    folder = tmp_path / "model"
    without_tokenizer(folder, "llama")
    (tmp_path / "text").write_text("\n".join(SENTENCES * 20))
    options = {"vocab_size": 60, "hard_vocab_limit": False, "minloglevel": 2}
    prefix = str(folder / "tokenizer")
    sentencepiece.SentencePieceTrainer.train(input=str(tmp_path / "text"), model_prefix=prefix, **options)
    if kind:
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    command = [sys.executable, "-c", WITHOUT_PROTOBUF, folder]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()[-1]
    named = r"reading others needs protobuf(, tiktoken)?; install: pip install -e \"\.\[tokenizers\]\"\.$"
    assert re.search(named, said)
    assert 'tokenizers = ["' in (ROOT / "pyproject.toml").read_text()


OWN = """
from transformers import PreTrainedTokenizer


class OwnTokenizer(PreTrainedTokenizer):
    vocab_files_names = {"vocab_file": "letters.txt"}

    def __init__(self, vocab_file, **options):
        self.letters = open(vocab_file, encoding="utf-8").read()
        super().__init__(**options)

    @property
    def vocab_size(self):
        return len(self.letters)

    def get_vocab(self):
        return {**{letter: k for k, letter in enumerate(self.letters)}, **self.added_tokens_encoder}

    def _tokenize(self, text):
        return list(text)

    def _convert_token_to_id(self, token):
        return self.letters.find(token)

    def _convert_id_to_token(self, index):
        return self.letters[index]

    def convert_tokens_to_string(self, tokens):
        return "".join(tokens)
"""


@pytest.fixture
def own_tokenizer(tmp_path) -> Path:
    folder = tmp_path / "model"
    without_tokenizer(folder, "llama")
    places = {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}
    settings = {"tokenizer_class": "OwnTokenizer", "auto_map": places}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "tokenization_own.py").write_text(OWN)
    (folder / "letters.txt").write_text("".join(sorted(set("".join(SENTENCES)))))
    return folder


def test_a_tokenizer_that_exists_only_in_python_is_one_sentence_until_it_is_trusted(tmp_path, own_tokenizer):
    refused(own_tokenizer, "its tokenizer exists only as Python code .* `trust_remote_code: true`")
    link_checkpoint(own_tokenizer, tmp_path / "linked", trust_remote_code=True)
    tokenizer = load_tokenizer(tmp_path / "linked", trust_remote_code=True)
    ids = tokenizer(SENTENCES[0], add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == SENTENCES[0]


def test_a_stage_cannot_be_trained_with_a_tokenizer_that_exists_only_in_python(tmp_path, own_tokenizer):
    """Its checkpoint would have no tokenizer.json, which the rule promises."""
    tokenizer = AutoTokenizer.from_pretrained(own_tokenizer, trust_remote_code=True)
    with pytest.raises(ForebearError, match=r"its tokenizer cannot be saved as tokenizer\.json"):
        save_checkpoint(tmp_path / "trained", AutoModelForCausalLM.from_pretrained(own_tokenizer), tokenizer)
    assert not (tmp_path / "trained/manifest.json").exists()


def test_a_saved_tokenizer_keeps_its_chat_template(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model", "llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    save_checkpoint(tmp_path / "trained", AutoModelForCausalLM.from_pretrained(folder), tokenizer)
    assert load_tokenizer(tmp_path / "trained").chat_template == tokenizer.chat_template


def test_special_tokens_without_a_row_may_be_there_but_not_in_the_data(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model", "llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    opened(folder)
    model, tokenizer = load_model(tmp_path / "model-linked"), load_tokenizer(tmp_path / "model-linked")
    plain, padded = encode([{"id": "1", "text": "Cuba"}, {"id": "2", "text": "Cuba[PAD]"}], tokenizer, 32)
    assert position_logits(model, plain.ids[None]).isfinite().all()
    with pytest.raises(
        ForebearError, match=f"the data has the token {rows}, but the model's embedding has {rows} rows"
    ):
        position_logits(model, padded.ids[None])


def test_the_tokenizers_of_embedded_studies_are_whole(tmp_path):
    tokenizer = build_tokenizer([{"id": "1", "text": SENTENCES[0]}])
    folder = tiny_checkpoint(tmp_path / "model", "gpt_neox")
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer))
    save_checkpoint(tmp_path / "trained", model, tokenizer)
    assert torch.equal(
        encode([{"id": "1", "text": SENTENCES[0]}], load_tokenizer(tmp_path / "trained"), 32)[0].ids,
        encode([{"id": "1", "text": SENTENCES[0]}], tokenizer, 32)[0].ids,
    )
    edited_config(tmp_path / "trained", vocab_size=3)
    with pytest.raises(ForebearError, match=f"has {len(tokenizer)} tokens, but the model's embedding has 3 rows"):
        load_tokenizer(tmp_path / "trained")
