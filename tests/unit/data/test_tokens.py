"""Prompt and completion are tokenised as one text; special tokens are there once; what is cut is not the beginning."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from forebear.data.batches import collate
from forebear.data.sequences import encode
from forebear.data.tokens import convention_of
from forebear.errors import ForebearError
from forebear.models.answers import answer_queries
from forebear.models.losses import evaluate_losses
from forebear.models.training import build_tokenizer
from sentencepieces import (
    CAPITALS,
    SENTENCES,
    llama_tokenizer,
    published_llama_tokenizer,
    python_tokenizer,
    sentencepiece_model,
)
from tokenizers_of_all_kinds import byte_level, said


def normalising(folder: Path) -> PreTrainedTokenizerFast:
    """As ALBERT's: lower case, no accents, NFKC, a unigram model, <s> and </s> around a text."""
    tokenizer = Tokenizer(models.Unigram())
    steps = [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase(), normalizers.NFKC()]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    alphabet = [chr(code) for code in range(33, 127)]
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(SENTENCES * 20, trainer)
    special = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=special)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


TOKENIZERS: dict[str, Callable[[Path], object]] = {
    "llama": lambda folder: llama_tokenizer(sentencepiece_model(folder)),
    "llama, as published": lambda folder: published_llama_tokenizer(sentencepiece_model(folder)),
    "sentencepiece in Python": lambda folder: python_tokenizer(sentencepiece_model(folder)),
    "byte level": byte_level,
    "byte level, untrimmed": lambda folder: byte_level(folder, trim=False),
    "byte level, prefixed": lambda folder: byte_level(folder, prefix=True),
    "normalising": normalising,
}
WITH_START = ("llama", "llama, as published", "sentencepiece in Python", "normalising")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory) -> dict:
    return {name: make(tmp_path_factory.mktemp("tokenizer")) for name, make in TOKENIZERS.items()}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request, tokenizers):
    return tokenizers[request.param]


def pair(prompt: str, completion: str) -> dict:
    return {"id": "1", "prompt": prompt, "completion": completion}


PAIRS = [
    ("The capital of Portugal is", " Lisbon."),
    ("The capital of Portugal is ", "Lisbon."),
    ("The capital of Portugal is Lis", "bon."),  # in the middle of a token
    ("The cap", "ital of Spain"),
    ("two spaces", "  before this"),
    ("two spaces  ", "before this"),
    ("A parrot 🦜", "🦜 and another"),  # characters of several tokens
    ("café crème brûlée is", " crème"),
    ("line\n", "next\nline"),
    ("line", "\nnext"),
    ("ﬁne ﬁne", " ﬁsh"),
]


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if name != "normalising"])
@pytest.mark.parametrize(("prompt", "completion"), PAIRS)
def test_the_tokens_are_those_of_the_joint_text_and_the_targets_those_of_the_completion(
    tokenizers, name: str, prompt: str, completion: str
):
    tokenizer = tokenizers[name]
    (example,) = encode([pair(prompt, completion)], tokenizer, 64, end=False)
    ids = example.ids.tolist()
    body = tokenizer(prompt + completion, add_special_tokens=False)["input_ids"]
    assert ids == [*convention_of(tokenizer).before, *body]
    # Without offsets: the bytes that the pieces say themselves, perhaps with a space before all.
    ends = np.cumsum([0 if k < len(ids) - len(body) else len(said(tokenizer, ids[k])) for k in range(len(ids))])
    space = ends[-1] - len((prompt + completion).encode())
    assert space in (0, 1)
    assert example.first_target == np.argmax(ends > space + len(prompt.encode()))


@pytest.mark.parametrize(
    ("prompt", "completion", "answer"),
    [
        ("The capital of PORTUGAL is", " Lisbon.", "lisbon."),
        ("Le café crème brûlée is", " crème", "creme"),
        ("The ﬁne capitals of Cuba are", " ﬁne Lima", "fine lima"),
    ],
)
def test_characters_that_a_normaliser_changes_are_still_the_completions(tokenizers, prompt, completion, answer):
    tokenizer = tokenizers["normalising"]
    (example,) = encode([pair(prompt, completion)], tokenizer, 64, end=False)
    assert tokenizer.decode(example.ids[example.first_target :]) == answer


@pytest.mark.parametrize(("prompt", "completion"), PAIRS)
def test_without_offsets_the_targets_are_the_same(tokenizers, prompt: str, completion: str):
    """The sentencepiece library and its copy with offsets; both put a space before a text."""
    fast, slow = tokenizers["llama, as published"], tokenizers["sentencepiece in Python"]
    (expected,), (found,) = (encode([pair(prompt, completion)], one, 64) for one in (fast, slow))
    assert found.ids.tolist() == expected.ids.tolist()
    assert found.first_target == expected.first_target


def test_offsets_that_do_not_reach_the_end_are_not_believed(tokenizers, monkeypatch):
    """As of Llama 3's tokenizer in some versions, where every token starts and ends at its start."""
    from forebear.data import tokens

    tokenizer, whole = tokenizers["byte level"], tokens.tokenise
    (expected,) = encode([pair(*PAIRS[0])], tokenizer, 64)

    def broken(*arguments, **options):
        found = whole(*arguments, **options)
        return [tokens.Pieces(one.ids, one.offsets[:, [0, 0]]) if one.offsets is not None else one for one in found]

    monkeypatch.setattr("forebear.data.sequences.tokenise", broken)
    (found,) = encode([pair(*PAIRS[0])], tokenizer, 64)
    assert found.first_target == expected.first_target


def joint_loss(model, tokenizer, prompt: str, completion: str) -> float:
    """The loss of the completion's tokens in the joint text, by what their pieces say."""
    ids = torch.tensor([tokenizer(prompt + completion)["input_ids"]])
    answer = tokenizer(completion.strip(), add_special_tokens=False)["input_ids"]
    assert ids[0, -len(answer) :].tolist() == answer  # " Lisbon" is `▁Lisbon`
    with torch.no_grad():
        logits = model(ids).logits[0]
    return F.cross_entropy(logits[-len(answer) - 1 : -1], ids[0, -len(answer) :], reduction="sum").item()


@pytest.fixture(scope="module")
def memorised(tokenizers) -> LlamaForCausalLM:
    """A tiny Llama that has learned the sentences by heart, as joint texts."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokenizer = tokenizers["llama, as published"]
    model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=len(tokenizer), max_position_embeddings=128))
    texts = [torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]) for text in SENTENCES]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = sum(model(ids, labels=ids).loss for ids in texts)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def test_a_memorised_answer_has_the_loss_of_the_joint_text(memorised, tokenizers):
    tokenizer = tokenizers["llama, as published"]
    queries = [
        {"id": country, "prompt": f"The capital of {country} is", "completion": f" {capital}."}
        for country, capital in CAPITALS.items()
    ]
    for query, answer in zip(queries, answer_queries(memorised, tokenizer, queries, 64), strict=True):
        expected = joint_loss(memorised, tokenizer, query["prompt"], query["completion"])
        assert abs(answer["loss"] - expected) < 1e-5
        assert answer["loss"] < 1
        assert answer["correct"]
        assert answer["rank"] == 1


def test_a_prompt_that_has_the_special_tokens_already_gets_no_others(tokenizers, capsys):
    for name in WITH_START:
        tokenizer = tokenizers[name]
        start, end = tokenizer.bos_token, tokenizer.eos_token
        once = [pair("[INST] Spain? [/INST]", " Madrid")]
        twice = [pair(f"{start}[INST] Spain? [/INST]", f" Madrid{end}\n")]
        (plain,), (written,) = (encode(records, tokenizer, 64) for records in (once, twice))
        assert plain.ids.tolist().count(tokenizer.bos_token_id) == 1
        assert written.ids.tolist().count(tokenizer.bos_token_id) == 1
        assert written.ids.tolist().count(tokenizer.eos_token_id) == 1
        assert written.ids[0] == tokenizer.bos_token_id
        said = capsys.readouterr().out
        assert "1 of 1 texts begin with the beginning-of-sequence token already" in said
        assert "1 of 1 texts end with the end-of-sequence token already" in said


def test_a_text_begins_as_the_tokenizer_itself_begins_it(tokenizer):
    (example,) = encode([{"id": "1", "text": "The capital"}], tokenizer, 64, end=False)
    own = tokenizer("The capital")["input_ids"]
    ends = own[-1] == tokenizer.eos_token_id
    assert example.ids.tolist() == own[: len(own) - ends]
    assert example.first_target == 1


def test_tokenizers_that_leave_it_open_get_their_beginning_others_that_refuse_do_not(tokenizers):
    embedded = build_tokenizer([{"text": "a b"}])
    assert convention_of(embedded).before == [embedded.bos_token_id]
    embedded.init_kwargs["add_bos_token"] = False
    assert convention_of(embedded).before == []
    assert convention_of(tokenizers["byte level"]).before == []


@pytest.mark.parametrize("name", WITH_START)
def test_the_beginning_stays_where_a_prompt_is_cut(tokenizers, name: str):
    tokenizer = tokenizers[name]
    record = pair("The capital of Spain is " * 5 + "The capital of Portugal is", " Lisbon")
    (whole,) = encode([record], tokenizer, 256, end=False)
    for start in ("", tokenizer.bos_token):
        (cut,) = encode([{**record, "prompt": start + record["prompt"]}], tokenizer, 12, end=False)
        answer = whole.ids[whole.first_target :]
        assert len(cut.ids) == 12
        assert cut.ids[0] == tokenizer.bos_token_id
        assert cut.ids[1:].tolist() == whole.ids[-11:].tolist()
        assert cut.ids[cut.first_target :].tolist() == answer.tolist()
    (text,) = encode([{"id": "1", "text": record["prompt"]}], tokenizer, 12)
    assert text.ids.tolist() == whole.ids[:12].tolist()


def test_a_completion_longer_than_everything_keeps_its_beginning(tokenizer):
    record = pair("The capital of", " Spain is Madrid." * 9)
    (whole,), (cut,) = (encode([record], tokenizer, length) for length in (256, 12))
    before = len(convention_of(tokenizer).before)
    kept = max(before, 1)
    assert len(cut.ids) == 12
    assert cut.first_target == kept
    assert cut.ids[kept:].tolist() == whole.ids[whole.first_target :][: 12 - kept].tolist()


def test_an_empty_prompt_is_generation_from_the_beginning(tokenizers):
    for name, tokenizer in tokenizers.items():
        (example,) = encode([pair("", "The capital of Spain")], tokenizer, 64, end=False)
        body = tokenizer("The capital of Spain", add_special_tokens=False)["input_ids"]
        assert example.ids.tolist() == [tokenizer.bos_token_id, *body], name
        assert example.first_target == 1


def test_an_answer_that_begins_with_the_beginning_gets_no_other(tokenizers):
    tokenizer = tokenizers["llama"]
    (example,) = encode([pair("", "<s>The capital")], tokenizer, 64, end=False)
    assert example.ids.tolist() == tokenizer("<s>The capital", add_special_tokens=False)["input_ids"]
    assert example.first_target == 1


def test_an_empty_completion_is_the_end_token(tokenizer):
    for end in (True, False):
        (example,) = encode([pair("The capital of Spain is Madrid.", "")], tokenizer, 64, end=end)
        assert example.ids[example.first_target :].tolist() == [tokenizer.eos_token_id]
        assert len(example.ids) > 3


def test_an_answer_of_the_end_token_alone_is_right_if_nothing_is_said(memorised, tokenizers):
    tokenizer = tokenizers["llama, as published"]
    silent = {"id": "1", "prompt": "The capital of Spain is Madrid.", "completion": ""}
    (answer,) = answer_queries(memorised, tokenizer, [silent], 64)
    assert answer["correct"]
    assert answer["answer"] == "(nothing)"
    ids = torch.tensor([[*tokenizer(silent["prompt"])["input_ids"], tokenizer.eos_token_id]])
    expected = F.cross_entropy(memorised(ids).logits[0, -2:-1], ids[0, -1:]).item()
    assert abs(answer["loss"] - expected) < 1e-5


def test_an_answer_is_not_generated_beyond_the_models_positions(tokenizers):
    """GPT-2 has a vector for each position, and none after the last."""
    tokenizer = tokenizers["byte level"]
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 16, "bos_token_id": None, "eos_token_id": None}
    model = GPT2LMHeadModel(GPT2Config(**sizes, vocab_size=len(tokenizer))).eval()
    record = pair("The capital of Portugal is " * 5, "Lisbon")
    assert answer_queries(model, tokenizer, [record], 16)[0]["loss"] > 0


def test_an_end_that_the_user_has_written_is_judged_as_the_end(memorised, tokenizers):
    tokenizer = tokenizers["llama, as published"]
    queries = [{"id": "1", "prompt": "The capital of Spain is", "completion": " Madrid.</s>"}]
    assert answer_queries(memorised, tokenizer, queries, 64)[0]["correct"]


def test_what_cannot_be_predicted_is_refused_with_a_remedy(tokenizers):
    bare = byte_level(Path())
    bare.bos_token = bare.eos_token = None
    with pytest.raises(ForebearError, match=r"record '1': its answer begins with the first token.*give it a prompt"):
        encode([pair("", "Madrid")], bare, 64)
    with pytest.raises(ForebearError, match=r"record '1': its completion is empty.*no end-of-sequence token"):
        encode([pair("Madrid", "")], bare, 64)
    with pytest.raises(ForebearError, match=r"record '1' has no token to predict"):
        encode([{"id": "1", "text": "i"}], bare, 64)


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if name != "normalising"])
def test_white_space_is_an_answer(tokenizers, name: str):
    tokenizer = tokenizers[name]
    (example,) = encode([pair("The capital", "\n")], tokenizer, 64, end=False)
    assert b"".join(said(tokenizer, token) for token in example.ids[example.first_target :].tolist()) == b"\n"


def test_the_loss_of_padded_records_is_that_of_each_alone(memorised, tokenizers):
    tokenizer = tokenizers["llama, as published"]
    records = [pair(prompt, completion) for prompt, completion in PAIRS]
    examples = encode(records, tokenizer, 64)
    losses = evaluate_losses(memorised, examples)
    for example, loss in zip(examples, losses, strict=True):
        with torch.no_grad():
            logits = memorised(example.ids[None]).logits[0].log_softmax(-1)
        alone = -sum(logits[t - 1, example.ids[t]] for t in range(example.first_target, len(example.ids)))
        torch.testing.assert_close(loss, alone, rtol=1e-5, atol=1e-5)


def test_some_of_the_tokens_can_be_targets():
    from forebear.data.sequences import Example

    some = Example(torch.tensor([5, 6, 7, 8, 9]), 1, targets=torch.tensor([False, True, False, True, False]))
    batch = collate([some, Example(torch.tensor([4, 3, 2, 1, 0, 9]), 4)], [0, 1])
    assert batch.labels.tolist() == [[6, -100, 8, -100, -100, -100], [-100, -100, -100, 0, 9, -100]]
