"""Published data sets' own records, as forebear's: `text`, or `prompt` and `completion`.

What each line of a file is follows from its keys.
"""

# The instruction format of dolly v2 (databricks/dolly, training/consts.py). The loss is on
# the response, and so is what a query measures.
_DOLLY_INTRODUCTION = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)
_DOLLY_END = "### End"


def as_record(line: dict) -> dict:
    """A line of xP3 (`inputs`, `targets`), databricks-dolly-15k (`instruction`, `response`) or
    ptb_text_only (`sentence`) as a record.

    Any other line is a record already.
    """
    if {"inputs", "targets"} <= line.keys():
        kept = {key: value for key, value in line.items() if key not in ("inputs", "targets")}
        return {**kept, "prompt": line["inputs"], "completion": f" {line['targets']}"}
    if {"instruction", "response"} <= line.keys():
        kept = {key: value for key, value in line.items() if key not in ("instruction", "context", "response")}
        return {**kept, "prompt": dolly_prompt(line), "completion": f"{line['response']}\n\n{_DOLLY_END}"}
    if "sentence" in line and "text" not in line:
        kept = {key: value for key, value in line.items() if key != "sentence"}
        return {**kept, "text": line["sentence"]}
    return line


def dolly_prompt(line: dict) -> str:
    """What dolly sees before it responds; `context` is optional."""
    parts = [_DOLLY_INTRODUCTION, f"### Instruction:\n{line['instruction']}"]
    if line.get("context"):
        parts.append(f"Input:\n{line['context']}")
    return "\n\n".join([*parts, "### Response:\n"])
