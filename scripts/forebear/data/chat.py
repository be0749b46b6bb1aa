"""Chats as one text, by the tokenizer's chat template, and which of its characters carry loss.

A turn of the assistant carries loss from where the template leaves the word to it (what
`add_generation_prompt` ends with) to its end-of-turn token, as trainers do it. What is measured
of a query is the last turn's content alone.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from forebear.data.conversations import ASSISTANT
from forebear.data.tokens import Span
from forebear.errors import ForebearError

_MARK = "\ue000"  # a character for private use
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
# A template that writes today's date would make other tokens in every job.
_FIXED_DATE = "{% macro strftime_now(format) -%}26 Jul 2024{%- endmacro %}"


@dataclass(frozen=True)
class Chat:
    """How records with `messages` are read; fields as the config's `chat`."""

    loss: str = "assistant"  # on all turns of the assistant, or on the `last`
    template: str | None = None  # a Jinja template, in place of the tokenizer's


DEFAULT_CHAT = Chat()


@dataclass(frozen=True)
class _Script:
    """A record's conversation and the template that writes it."""

    name: str  # of the record, for errors
    messages: Sequence[Mapping]
    tools: Sequence[Mapping] | None
    template: str
    words: Mapping[str, str]  # the special tokens that a template may name

    def saying(self, turn: int, content: str) -> "_Script":
        """The same with another content of one message."""
        message = {**self.messages[turn], "content": content}
        return replace(self, messages=[*self.messages[:turn], message, *self.messages[turn + 1 :]])

    def render(self, number: int | None = None, prompt: bool = False, blocks: bool = False) -> tuple[str, list[Span]]:
        """The text of the first `number` messages, and the blocks that the template marks as generated."""
        try:
            texts, marked = render_jinja_template(
                [list(self.messages[:number])],
                tools=self.tools,
                chat_template=self.template,
                add_generation_prompt=prompt,
                return_assistant_tokens_mask=blocks,
                **self.words,
            )
        except (TemplateError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ForebearError(
                f"{self.name}: the chat template does not take its `messages` ({reason}); correct them, or give "
                "another template (`chat.template`)."
            ) from error
        return texts[0], marked[0] if blocks else []


def rendered(record: Mapping, tokenizer, chat: Chat) -> str:
    """A whole chat as its template writes it: what a classifier reads."""
    return _script(record, tokenizer, chat).render()[0]


def chat_spans(record: Mapping, tokenizer, chat: Chat, measured: bool) -> tuple[str, list[Span]]:
    """A chat as its template writes it, and the characters that carry loss.

    Args:
        measured: it is a query, whose last message is the answer: its content alone counts.

    Raises:
        ForebearError: no template, one that does not take the messages, no turn of the assistant,
            or turns that cannot be found in what the template writes.
    """
    script = _script(record, tokenizer, chat)
    turns = [k for k, message in enumerate(script.messages) if message["role"] == ASSISTANT]
    wanted = [k for k in turns if script.messages[k].get("weight", 1)]
    if measured and (not wanted or wanted[-1] != len(script.messages) - 1):
        raise ForebearError(
            f"{script.name}: a query's last message is the answer that is measured; end it with one of the assistant."
        )
    if not wanted:
        raise ForebearError(f"{script.name}: its chat has no turn of the assistant that could carry loss; remove it.")
    if measured or chat.loss == "last":
        wanted = wanted[-1:]
    if _GENERATION.search(script.template):
        return _marked(script, turns, wanted, measured)
    text, _ = script.render()
    return text, [(_turn_start(script, text, k), _turn_end(script, text, k, measured)) for k in wanted]


def _script(record: Mapping, tokenizer, chat: Chat) -> _Script:
    name, tools = f"record {record['id']!r}", record.get("tools")
    try:
        template = tokenizer.get_chat_template(chat.template, tools)
    except ValueError as error:
        raise ForebearError(
            f"{name} is a chat (`messages`), but the tokenizer has no chat template; give one in the study "
            "(`chat.template`), or records of `prompt` and `completion`."
        ) from error
    if "strftime_now" in template:
        template = _FIXED_DATE + template
    return _Script(name, record["messages"], tools, template, tokenizer.special_tokens_map)


def _marked(script: _Script, turns: Sequence[int], wanted: Sequence[int], measured: bool) -> tuple[str, list[Span]]:
    """The turns by the template's own marks, {% generation %}: the tokenizer's assistant mask."""
    text, blocks = script.render(blocks=True)
    if list(turns) == list(wanted) and not measured:
        return text, blocks
    if len(blocks) != len(turns):
        raise ForebearError(
            f"{script.name}: the chat template marks {len(blocks)} generated parts ({{% generation %}}) in "
            f"{len(turns)} turns of the assistant, so one of them cannot be told apart; correct the template."
        )
    chosen = [blocks[turns.index(k)] for k in wanted]
    if measured and _is_spoken(script, wanted[-1]) and (end := _content_bound(script, text, wanted[-1])) is not None:
        chosen = [(first, min(max(first, end), last)) for first, last in chosen]
    return text, chosen


def _turn_start(script: _Script, text: str, turn: int) -> int:
    """Where the word is left to the assistant."""
    if turn:
        asked, _ = script.render(turn, prompt=True)
        if text.startswith(asked):
            if "add_generation_prompt" in script.template:
                return len(asked)
            # Without a prompt for generation the turn may begin with a header, which is not the answer.
            content = _content_bound(script, text, turn, before=True)
            return content if content is not None and text[len(asked) : content].strip() else len(asked)
    # A prompt may say more than the turn begins with, such as an opening <think>: then the content is the turn.
    content = _content_bound(script, text, turn, before=True)
    if content is None:
        raise _not_found(script, turn)
    return content


def _turn_end(script: _Script, text: str, turn: int, measured: bool) -> int:
    """Where a turn's content ends, or what the template puts at its end; the white space after that is the template's."""
    end = _content_bound(script, text, turn)
    if _is_spoken(script, turn):
        if end is None:
            raise _not_found(script, turn)
        if measured:
            return end
    last = turn == len(script.messages) - 1
    upto = text if last else script.render(turn + 1)[0]
    if end is None:
        if not text.startswith(upto):
            raise _not_found(script, turn)
        return len(upto.rstrip())
    rest = upto[end if last else _content_bound(script, upto, turn, turn + 1) :]
    rest = rest.rstrip() or rest
    if not text.startswith(rest, end):
        raise _not_found(script, turn)
    return end + len(rest)


def _is_spoken(script: _Script, turn: int) -> bool:
    """Whether a turn has words: a call of a tool, or silence, is measured with its end of turn."""
    message = script.messages[turn]
    return bool(message["content"].strip()) and not message.get("tool_calls")


def _content_bound(
    script: _Script, text: str, turn: int, number: int | None = None, before: bool = False
) -> int | None:
    """Where a turn's content ends, or begins, in the `text` that the template writes of the first `number` messages.

    Templates may strip a content, and may write more before and after it. So a mark is put behind
    or before it, and what is written is the same up to there; None where the mark is not written.
    """
    content = script.messages[turn]["content"]
    bare = content.lstrip() if before else content.rstrip()
    if bare != content and script.saying(turn, bare).render(number)[0] == text:
        content = bare  # the template strips it
    marked, _ = script.saying(turn, _MARK + content if before else content + _MARK).render(number)
    start = marked.find(_MARK)
    return start if start >= 0 and text.startswith(marked[:start]) else None


def _not_found(script: _Script, turn: int) -> ForebearError:
    return ForebearError(
        f"{script.name}: message {turn + 1} cannot be found in what the chat template writes, or is written otherwise "
        "when more messages follow; give a template that marks the assistant's turns with {% generation %} "
        "(`chat.template`), or `chat.loss: last`."
    )
