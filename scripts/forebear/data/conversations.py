"""Chats as people store them → `messages` as chat templates read them: role, content, calls of tools."""

import json
from collections.abc import Mapping, Sequence

from forebear.errors import ForebearError

ASSISTANT = "assistant"
# How data sets such as ShareGPT call who speaks.
_ROLES = {
    **dict.fromkeys(("human", "user", "prompter"), "user"),
    **dict.fromkeys(("gpt", "assistant", "model", "bot", "chatgpt", "bing", "bard", "function_call"), ASSISTANT),
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
}


def as_messages(messages: object, where: str) -> list[dict]:
    """Checked messages; every other key of theirs, such as `name` or `tool_call_id`, stays.

    Contents in parts of text become one string, arguments of tools that are JSON in a string an object.

    Raises:
        ForebearError: naming the message that is none, or has parts other than text.
    """
    if not isinstance(messages, list) or not messages:
        raise ForebearError(f"{where}: `messages` must be a list of messages with `role` and `content`.")
    return [_message(message, f"{where}, message {number}") for number, message in enumerate(messages, start=1)]


def as_tools(tools: object, where: str) -> list[dict]:
    """The tools that a chat may call; some data sets write them as JSON in a string."""
    tools = _parsed(tools)
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise ForebearError(f"{where}: `tools` must be a list of JSON objects that describe functions.")
    return tools


def spoken(message: Mapping) -> str:
    """What a message says, as people and text rankers read it: its content, or its calls of tools."""
    calls = message.get("tool_calls")
    return message["content"] or (json.dumps(calls, ensure_ascii=False) if calls else "")


def transcript(messages: Sequence[Mapping]) -> str:
    """Messages for people; one alone is only its words."""
    if len(messages) == 1:
        return spoken(messages[0])
    return "\n".join(f"{message['role']}: {spoken(message)}" for message in messages)


def _message(message: object, where: str) -> dict:
    if not isinstance(message, Mapping):
        raise ForebearError(f"{where}: expected a JSON object with `role` and `content`, found {message!r}.")
    given = {key: value for key, value in message.items() if value is not None}
    role = given.pop("role", given.pop("from", None))
    if not isinstance(role, str) or not role:
        raise ForebearError(f"{where}: has no `role`; say who speaks, such as user or assistant.")
    content = given.pop("content", given.pop("value", None))
    if calls := given.get("tool_calls"):
        given["tool_calls"] = [_call(call, where) for call in calls]
    if content is None and not calls:
        raise ForebearError(f"{where}: has no `content`.")
    return {"role": _ROLES.get(role.lower(), role), "content": _text(content, where), **given}


def _text(content: object, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    parts = content if isinstance(content, list) else [content]
    return "".join(_part(part, where) for part in parts)


def _part(part: object, where: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
        return part["text"]
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise ForebearError(f"{where}: its `content` has a part that is no text ({kind}); forebear reads text alone.")


def _call(call: object, where: str) -> dict:
    """A call of a tool with its arguments as an object, which is what templates write as JSON."""
    if not isinstance(call, Mapping):
        raise ForebearError(f"{where}: `tool_calls` must be a list of JSON objects.")
    call = {key: value for key, value in call.items() if value is not None}
    function = call.get("function", call)
    if isinstance(function, Mapping) and "arguments" in function:
        function = {**function, "arguments": _parsed(function["arguments"])}
    return {**call, "function": function} if "function" in call else dict(function)


def _parsed(value: object) -> object:
    """JSON in a string as what it stands for; anything else as it is."""
    if isinstance(value, str):
        try:
            parsed = json.loads(value)
        except json.JSONDecodeError:
            return value
        return parsed if isinstance(parsed, dict | list) else value
    return value
