"""Chats: the tokens are those of the chat template, the loss is on the assistant's turns."""

import copy
import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

import templates
from forebear.data.chat import Chat, chat_spans
from forebear.data.records import check_record, full_text, read_records, record_key
from forebear.data.sequences import Example, encode
from forebear.errors import ForebearError
from forebear.models.answers import answer_queries
from forebear.models.checkpoints import load_tokenizer, save_checkpoint
from forebear.models.losses import evaluate_losses
from forebear.models.training import Schedule, build_tokenizer, train
from forebear.report.proponents import proponents_markdown
from sentencepieces import CAPITALS, llama_tokenizer, python_tokenizer, sentencepiece_model
from tokenizers_of_all_kinds import byte_level, said


def user(content: str) -> dict:
    return {"role": "user", "content": content}


def assistant(content: str, **more) -> dict:
    return {"role": "assistant", "content": content, **more}


SYSTEM = {"role": "system", "content": "Answer in a word."}
TWO_TURNS = [user("Portugal ?"), assistant("Lisbon s"), user("And Spain ?"), assistant(" Madrid ")]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    tokenizer = llama_tokenizer(sentencepiece_model(tmp_path_factory.mktemp("tokenizer")))
    tokenizer.add_special_tokens({"additional_special_tokens": templates.SPECIAL})
    return tokenizer


def record(messages: list[dict], **more) -> dict:
    return {"id": "1", "messages": messages, **more}


def targets_of(tokenizer, example: Example) -> list[str]:
    """The runs of targets as text."""
    mask = torch.arange(len(example.ids)) >= example.first_target
    if example.targets is not None:
        mask = example.targets
    runs, previous = [], False
    for token, chosen in zip(example.ids.tolist(), mask.tolist(), strict=True):
        if chosen:
            runs = runs if previous else [*runs, []]
            runs[-1].append(token)
        previous = chosen
    return [b"".join(said(tokenizer, token) for token in run).decode() for run in runs]


# What carries loss of TWO_TURNS, and what of the last turn is measured.
TURNS = {
    "CHATML": (["Lisbon s<|im_end|>", " Madrid <|im_end|>"], " Madrid "),
    "MARKED": (["Lisbon s<|im_end|>", " Madrid <|im_end|>"], " Madrid "),
    "LLAMA2": ([" Lisbon s </s>", " Madrid </s>"], " Madrid"),
    "LLAMA3": (["Lisbon s<|eot_id|>", "Madrid<|eot_id|>"], "Madrid"),
    "MISTRAL": ([" Lisbon s</s>", " Madrid</s>"], " Madrid"),
    "THINKING": (["Lisbon s<|end|>", " Madrid <|end|>"], " Madrid "),
    "PLAIN": ([" Lisbon s\n", " Madrid \n"], " Madrid "),
    "TOOLS": (["Lisbon s<|im_end|>", " Madrid <|im_end|>"], " Madrid "),
}


@pytest.mark.parametrize("system", [[], [SYSTEM]], ids=["", "system"])
@pytest.mark.parametrize("name", TURNS)
def test_the_tokens_are_the_templates_and_the_targets_the_assistants(tokenizer, name: str, system: list[dict]):
    template, (turns, measured) = getattr(templates, name), TURNS[name]
    messages = [*system, *TWO_TURNS]
    if name == "THINKING":
        messages = TWO_TURNS
    plain = tokenizer.apply_chat_template(
        messages, chat_template=template.replace("strftime_now('%d %b %Y')", "'26 Jul 2024'"), return_dict=False
    )
    (every,) = encode([record(messages)], tokenizer, 512, chat=Chat("assistant", template))
    (last,) = encode([record(messages)], tokenizer, 512, chat=Chat("last", template))
    (query,) = encode([record(messages)], tokenizer, 512, end=False, chat=Chat("assistant", template))
    assert every.ids.tolist() == last.ids.tolist() == plain
    assert targets_of(tokenizer, every) == turns
    assert targets_of(tokenizer, last) == turns[1:]
    assert targets_of(tokenizer, query) == [measured]
    assert query.ids.tolist() == plain[: len(query.ids)]  # nothing comes after what is measured


def test_the_marks_of_a_template_are_the_tokenizers_assistant_mask(tokenizer):
    messages = [SYSTEM, *TWO_TURNS]
    options = {"return_dict": True, "return_assistant_tokens_mask": True}
    plain = tokenizer.apply_chat_template(messages, chat_template=templates.MARKED, **options)
    (example,) = encode([record(messages)], tokenizer, 512, chat=Chat("assistant", templates.MARKED))
    assert example.ids.tolist() == plain["input_ids"]
    assert example.targets.int().tolist() == plain["assistant_masks"]


def test_a_turn_that_begins_otherwise_when_it_is_the_last_is_found(tokenizer):
    chat = Chat("assistant", templates.EMPTY_THOUGHT)
    (example,) = encode([record(TWO_TURNS)], tokenizer, 512, chat=chat)
    thought = "<think>\n\n</think>\n\n"
    assert targets_of(tokenizer, example) == ["Lisbon s<|im_end|>", f"{thought} Madrid <|im_end|>"]


def test_a_content_that_stands_in_the_template_too_is_found(tokenizer):
    """`s` is part of </s> and of the headers, and every turn says the same."""
    messages = [user("s"), assistant("s"), user("s"), assistant("s")]
    ends = {templates.LLAMA2: " s </s>", templates.CHATML: "s<|im_end|>", templates.MISTRAL: " s</s>"}
    for template, turn in ends.items():
        (example,) = encode([record(messages)], tokenizer, 512, chat=Chat("assistant", template))
        assert targets_of(tokenizer, example) == [turn] * 2


def test_without_offsets_the_targets_are_the_same(tmp_path):
    slow = python_tokenizer(sentencepiece_model(tmp_path))
    for name in ("CHATML", "LLAMA2", "PLAIN"):
        chat = Chat("assistant", getattr(templates, name))
        (example,) = encode([record(TWO_TURNS)], slow, 512, chat=chat)
        text, spans = chat_spans(record(TWO_TURNS), slow, chat, measured=False)
        found = [run.strip() for run in targets_of(slow, example)]
        assert found == [text[first:last].strip() for first, last in spans]


def test_the_date_in_a_template_is_the_same_in_every_job(tokenizer):
    (example,) = encode([record(TWO_TURNS)], tokenizer, 512, chat=Chat("assistant", templates.LLAMA3))
    assert "Today Date: 26 Jul 2024<|eot_id|>" in tokenizer.decode(example.ids)


def test_calls_of_tools_carry_loss_and_what_tools_say_does_not(tokenizer):
    call = {"type": "function", "function": {"name": "capital", "arguments": '{"of": "Spain"}'}}
    messages = [
        user("Spain ?"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "Madrid"},
        assistant("It is Madrid"),
    ]
    tools = [{"type": "function", "function": {"name": "capital", "parameters": {}}}]
    checked = check_record({"id": "1", "messages": messages, "tools": json.dumps(tools)}, "here")
    chat = Chat("assistant", templates.TOOLS)
    (example,) = encode([checked], tokenizer, 512, chat=chat)
    called = '<tool_call>\n{"name": "capital", "arguments": {"of": "Spain"}}\n</tool_call><|im_end|>'
    assert targets_of(tokenizer, example) == [called, "It is Madrid<|im_end|>"]
    assert '"parameters": {}' in tokenizer.decode(example.ids)
    (query,) = encode([{**checked, "messages": checked["messages"][:2]}], tokenizer, 512, end=False, chat=chat)
    assert targets_of(tokenizer, query) == [called]  # a call is measured with its end
    assert record_key(checked) != record_key({**checked, "tools": []})


def test_turns_without_weight_and_turns_in_a_prompt_carry_no_loss(tokenizer):
    chat = Chat("assistant", templates.CHATML)
    silent = [user("a"), assistant("Rome", weight=0), user("b"), assistant("Lima")]
    halves = check_record({"id": "1", "prompt": silent[:3], "completion": silent[3:]}, "here")
    assert halves["messages"][1]["weight"] == 0
    for one in (record(silent), halves):
        (example,) = encode([one], tokenizer, 512, chat=chat)
        assert targets_of(tokenizer, example) == ["Lima<|im_end|>"]


def test_a_chat_longer_than_max_length_loses_its_oldest_part_but_not_the_beginning(tokenizer):
    messages = [user("The capital of Portugal ? " * 20), assistant("Lisbon"), user("Spain ?"), assistant("Madrid")]
    chat = Chat("assistant", templates.LLAMA3)
    (whole,) = encode([record(messages)], tokenizer, 2048, chat=chat)
    (cut,) = encode([record(messages)], tokenizer, 40, chat=chat)
    assert len(cut.ids) == 40
    assert cut.ids[0] == tokenizer.bos_token_id
    assert cut.ids[1:].tolist() == whole.ids[-39:].tolist()
    assert targets_of(tokenizer, cut)[-1] == "Madrid<|eot_id|>"


def test_the_loss_is_the_sum_over_the_turns(tokenizer):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=len(tokenizer))).eval()
    records = [record(TWO_TURNS), record([user("x"), assistant("y")]), {"id": "2", "text": "The capital of Spain"}]
    examples = encode(records, tokenizer, 512, chat=Chat("assistant", templates.CHATML))
    losses = evaluate_losses(model, examples)
    for example, loss in zip(examples, losses, strict=True):
        labels = example.ids.clone()
        labels[: example.first_target] = -100
        if example.targets is not None:
            labels[~example.targets] = -100
        with torch.no_grad():
            logits = model(example.ids[None]).logits[0]
        torch.testing.assert_close(loss, F.cross_entropy(logits[:-1], labels[1:], reduction="sum"))
    assert examples[0].targets.sum() < len(examples[0].ids) - examples[0].first_target


def test_a_memorised_answer_has_the_loss_of_the_rendered_text(tokenizer, tmp_path):
    """Trained by its chats, asked by chats and by the same prompts as text: JSON lines."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=len(tokenizer), max_position_embeddings=128))
    chat = Chat("assistant", templates.LLAMA2)
    path = tmp_path / "chats.jsonl"
    lines = [{"messages": [user(f"{country} ?"), assistant(capital)]} for country, capital in CAPITALS.items()]
    texts = [
        {"prompt": f"<s>[INST] {country} ? [/INST]", "completion": f" {capital}"}
        for country, capital in CAPITALS.items()
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in texts))
    records = read_records(path)
    examples = encode(records, tokenizer, 64, chat=chat)
    model, _ = train(model, examples, Schedule(150, 6, 1e-2, 0.0, 0.1), (0, 0))
    asked, written = read_records(path), read_records(tmp_path / "texts.jsonl")
    answers = answer_queries(model, tokenizer, asked, 64, chat), answer_queries(model, tokenizer, written, 64)
    for line, *both in zip(texts, *answers, strict=True):
        ids = tokenizer(line["prompt"] + line["completion"], add_special_tokens=False, return_tensors="pt")["input_ids"]
        number = len(tokenizer(line["completion"].strip(), add_special_tokens=False)["input_ids"])
        with torch.no_grad():
            logits = model(ids).logits[0]
        expected = F.cross_entropy(logits[-number - 1 : -1], ids[0, -number:], reduction="sum").item()
        assert expected < 0.5
        for answer in both:
            assert abs(answer["loss"] - expected) < 1e-5
            assert answer["rank"] == 1
    assert all(answer["correct"] for answer in answers[0])
    assert [answer["answer"].strip() for answer in answers[0]] == list(CAPITALS.values())


@pytest.mark.parametrize("name", ["CHATML", "PLAIN"])
def test_an_answer_of_a_chat_ends_with_its_turn(tokenizer, name: str):
    """ChatML's end of turn is not the tokenizer's end token, and that of words alone is a line end."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    torch.manual_seed(0)
    model, chat = (
        LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=len(tokenizer))),
        Chat("assistant", getattr(templates, name)),
    )
    records = [record([user("Spain ?"), assistant("Madrid")])]
    model, _ = train(model, encode(records, tokenizer, 128, chat=chat), Schedule(30, 1, 1e-2, 0.0, 0.1), (0, 0))
    (answer,) = answer_queries(model, tokenizer, records, 128, chat)
    assert (answer["answer"], answer["correct"]) == ("Madrid", True)


def test_a_classifier_reads_the_whole_chat(tokenizer):
    chat = Chat("assistant", templates.CHATML)
    (example,) = encode([record(TWO_TURNS, label="b")], tokenizer, 512, classes={"a": 0, "b": 1}, chat=chat)
    assert example.label == 1
    assert tokenizer.decode(example.ids).endswith("Madrid <|im_end|>\n")


@pytest.mark.parametrize(
    ("messages", "template", "end", "words"),
    [
        (TWO_TURNS, None, True, r"record '1' is a chat .*no chat template.*`chat.template`"),
        (TWO_TURNS[:3], "CHATML", False, r"record '1': a query's last message is the answer"),
        ([user("a")], "CHATML", True, r"record '1': its chat has no turn of the assistant"),
        (
            [user("a"), user("b"), assistant("c")],
            "LLAMA2",
            True,
            r"does not take its `messages` \(roles must alternate",
        ),
        ([user("a"), assistant("b")], "{% if %}", True, r"record '1': the chat template does not take"),
        ([user("a"), assistant("b")], "{{ messages[0]['content'] }}", True, r"message 2 cannot be found"),
    ],
)
def test_what_cannot_be_read_is_a_sentence(tokenizer, messages, template, end, words: str):
    template = getattr(templates, template or "", template)
    with pytest.raises(ForebearError, match=words):
        encode([record(messages)], tokenizer, 512, end=end, chat=Chat("assistant", template))


def test_a_model_from_fresh_weights_says_that_it_has_no_template():
    with pytest.raises(ForebearError, match=r"record '1' is a chat .*fresh weights.*`checkpoint`"):
        build_tokenizer([record(TWO_TURNS)])


def test_reports_and_text_rankers_read_chats():
    chat = record([SYSTEM, *TWO_TURNS])
    assert full_text(chat) == "Answer in a word.\nPortugal ?\nLisbon s\nAnd Spain ?\n Madrid "
    answers = [{"answer": "Madrid", "correct": True, "loss": 0.1}]
    page = proponents_markdown("s", [chat], answers, [{**chat, "stage": "t"}], torch.ones(1, 1).numpy(), 1, "bm25")
    assert "Question: system: Answer in a word. user: Portugal ? assistant: Lisbon s user: And Spain ?" in page
    assert "Right answer: Madrid" in page


SHAREGPT = {
    "id": "x",
    "system": "Answer in a word.",
    "conversations": [{"from": "human", "value": "Spain ?"}, {"from": "gpt", "value": "Madrid"}],
}


def test_chats_of_data_sets_are_known_by_their_keys():
    expected = [SYSTEM, user("Spain ?"), assistant("Madrid")]
    assert check_record(SHAREGPT, "here") == {"id": "x", "messages": expected}
    parts = [{"type": "text", "text": "Spain"}, {"type": "text", "text": " ?"}]
    openai = {
        "messages": [SYSTEM, {"role": "user", "content": parts, "name": None}, assistant("Madrid")],
        "text": "old",
    }
    assert check_record(openai, "here") == {"messages": expected}
    beside = {"system": "Answer in a word.", "messages": expected[1:], "tools": ""}
    assert check_record(beside, "here") == {"messages": expected}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"messages": []}, r"here: `messages` must be a list"),
        ({"messages": "hello"}, r"here: `messages` must be a list"),
        ({"messages": ["hello"]}, r"here, message 1: expected a JSON object"),
        ({"messages": [{"content": "a"}]}, r"here, message 1: has no `role`"),
        ({"messages": [{"role": "user"}]}, r"here, message 1: has no `content`"),
        ({"messages": [user("a"), user([{"type": "image_url"}])]}, r"here, message 2: .*no text \(image_url\)"),
        ({"messages": [user("a")], "tools": "none"}, r"here: `tools` must be a list"),
    ],
)
def test_a_chat_that_is_none_is_a_sentence(line: dict, words: str):
    with pytest.raises(ForebearError, match=words):
        check_record(line, "here")


def test_lines_of_alpaca_become_its_prompts():
    line = {"instruction": "Name the capital.", "input": "Spain", "output": "Madrid", "text": "all of it"}
    found = check_record(line, "here")
    assert found["completion"] == "Madrid"
    assert found["prompt"].endswith("### Instruction:\nName the capital.\n\n### Input:\nSpain\n\n### Response:")
    assert "text" not in found
    short = check_record({**line, "input": ""}, "here")["prompt"]
    assert "### Input" not in short
    assert short.startswith("Below is an instruction that describes a task. Write")
    with pytest.raises(ForebearError, match=r"here: Alpaca's format has no place for its `history`"):
        check_record({**line, "history": [["a", "b"]]}, "here")


def test_byte_level_tokenizers_read_chats_too():
    tokenizer = byte_level(Path())
    tokenizer.add_special_tokens({"additional_special_tokens": templates.SPECIAL})
    (example,) = encode([record(TWO_TURNS)], tokenizer, 512, chat=Chat("assistant", templates.CHATML))
    runs = [part for part in tokenizer.decode(example.ids[example.targets]).split("<|im_end|>") if part]
    assert runs == ["Lisbon s", " Madrid "]


def test_a_saved_model_keeps_its_template(tokenizer, tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=len(tokenizer)))
    talking = copy.deepcopy(tokenizer)
    for template in (templates.CHATML, {"default": templates.CHATML, "tool_use": templates.TOOLS}):
        talking.chat_template = template
        save_checkpoint(tmp_path / "saved", model, talking)
        assert load_tokenizer(tmp_path / "saved").chat_template == template
