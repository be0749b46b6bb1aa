"""Published data sets' own records, as forebear's: `text`, `prompt` and `completion`, or `messages`.

What each line of a file is follows from its keys.
"""

from collections.abc import Iterable, Mapping

from forebear.data.conversations import ASSISTANT, as_messages, as_tools
from forebear.errors import ForebearError

# The instruction format of dolly v2 (databricks/dolly, training/consts.py), whose first sentence is Alpaca's. The
# loss is on the response, and so is what a query measures.
_INTRODUCTION = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)
_DOLLY_END = "### End"
# Alpaca's (tatsu-lab/stanford_alpaca, train.py), where the instruction has an input.
_INTRODUCTION_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)


def as_record(line: dict, where: str = "record") -> dict:
    """A line of a published data set as a record; any other line is a record already.

    Known by their keys are chats (`messages`; ShareGPT's `conversations`; lists of messages as
    `prompt` and `completion`), xP3 (`inputs`, `targets`), databricks-dolly-15k (`instruction`,
    `response`), Alpaca (`instruction`, `output`) and ptb_text_only (`sentence`).

    Raises:
        ForebearError: for a chat that is none, or an Alpaca line with a history.
    """
    if chat := _chat(line, where):
        return chat
    if {"inputs", "targets"} <= line.keys():
        return {**_without(line, ("inputs", "targets")), "prompt": line["inputs"], "completion": f" {line['targets']}"}
    if {"instruction", "response"} <= line.keys():
        kept = _without(line, ("instruction", "context", "response"))
        return {**kept, "prompt": dolly_prompt(line), "completion": f"{line['response']}\n\n{_DOLLY_END}"}
    if {"instruction", "output"} <= line.keys():
        return _alpaca(line, where)
    if "sentence" in line and "text" not in line:
        return {**_without(line, ("sentence",)), "text": line["sentence"]}
    return line


def dolly_prompt(line: dict) -> str:
    """What dolly sees before it responds; `context` is optional."""
    parts = [_INTRODUCTION, f"### Instruction:\n{line['instruction']}"]
    if line.get("context"):
        parts.append(f"Input:\n{line['context']}")
    return "\n\n".join([*parts, "### Response:\n"])


def _alpaca(line: dict, where: str) -> dict:
    for key in ("history", "system"):
        if line.get(key):
            raise ForebearError(f"{where}: Alpaca's format has no place for its `{key}`; give it as `messages`.")
    given = line.get("input")
    parts = [
        _INTRODUCTION_WITH_INPUT if given else _INTRODUCTION,
        f"### Instruction:\n{line['instruction']}",
        *([f"### Input:\n{given}"] if given else []),
        "### Response:",
    ]
    # `text` repeats all of it in the published file.
    kept = _without(line, ("instruction", "input", "output", "text", "history", "system"))
    return {**kept, "prompt": "\n\n".join(parts), "completion": line["output"]}


def _chat(line: dict, where: str) -> dict | None:
    """A record with `messages`, whatever else its line has of the same words; None for another line."""
    prompt, completion = line.get("prompt"), line.get("completion")
    conversation = next(
        (line[key] for key in ("conversations", "conversation") if isinstance(line.get(key), list)), None
    )
    if "messages" in line:
        messages = as_messages(line["messages"], where)
    elif conversation is not None:
        messages = as_messages(conversation, where)
    elif isinstance(prompt, list) and isinstance(completion, list):
        asked, answered = as_messages(prompt, where), as_messages(completion, where)
        messages = [*(_silent(message) for message in asked), *answered]
    else:
        return None
    system = line.get("system")
    if isinstance(system, str) and system and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    kept = _without(line, ("messages", "conversations", "conversation", "prompt", "completion", "text", "system"))
    tools = as_tools(kept.pop("tools", None) or [], where)
    return {**kept, "messages": messages, **({"tools": tools} if tools else {})}


def _silent(message: Mapping) -> dict:
    """A message without loss: an assistant's turn in a prompt is no target."""
    return {**message, "weight": 0} if message["role"] == ASSISTANT else dict(message)


def _without(line: Mapping, keys: Iterable[str]) -> dict:
    return {key: value for key, value in line.items() if key not in keys}
