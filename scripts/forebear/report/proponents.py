"""Markdown pages for people: which documents speak for and against every answer."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from forebear.data.conversations import spoken, transcript
from forebear.data.records import full_text
from forebear.errors import ForebearError
from forebear.estimators import ESTIMATORS, root

LONGEST_DOCUMENT = 300  # characters shown of a document
LONGEST_IN_INDEX = 100  # and in a cell of the table of queries

# What Markdown, or GitHub's dialect of it, would read as markup inside a table's cell.
_ESCAPES = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;"} | {character: f"\\{character}" for character in "\\|`*_[]~$"}
)


@dataclass(frozen=True)
class PartlyExact:
    """How scores were made that are partly of compressed queries."""

    rank: int
    residual: float  # the largest of the attributed stages'
    exact: np.ndarray  # [N] bool, the documents that were scored with whole queries


def proponents_markdown(
    study: str,
    queries: list[dict],
    answers: list[dict],
    documents: Sequence[dict],
    scores: np.ndarray,
    top: int,
    estimator: str,
    compressed: PartlyExact | None = None,
    warnings: Sequence[str] = (),
) -> str:
    """The documents with the highest and lowest scores for every query, as a Markdown page.

    Args:
        study: its name, for the title.
        queries: Q records; `relevant`, where present, are ids of documents that state the answer.
        answers: Q values: the model's `answer`, whether it is `correct`, its `loss` (nats, the summed
            cross-entropy of the reference answer's tokens).
        documents: N records, each with its `stage`.
        scores: [N, Q], of all stages on one scale; > 0 speaks for the answer.
        top: the most documents that a table shows.
        estimator: key of ESTIMATORS, which made the scores.
        compressed: how the scores were made, if queries were compressed.
        warnings: sentences that stand at the head of the page.

    Raises:
        ForebearError: for scores that do not fit the records, or that are not finite.
    """
    _check(queries, answers, documents, scores, estimator)
    sections = [
        f"# Proponents of the answers of {escape(study)}",
        *(f"**⚠ {escape(sentence)}**" for sentence in warnings),
        _how_to_read(estimator, len(documents), len(queries)),
        *([] if compressed is None else [_what_is_exact(compressed)]),
        "## Queries",
        _index(queries, answers, documents, scores),
    ]
    for number, (query, answer, column) in enumerate(zip(queries, answers, scores.T, strict=True), start=1):
        sections += _section(number, query, answer, documents, column, top, compressed)
    return "\n\n".join(sections) + "\n"


def escape(text: str, longest: int | None = None) -> str:
    """Text as one line that a Markdown table shows as it is, cut to `longest` characters with an ellipsis."""
    line = " ".join(text.split())
    if longest is not None and len(line) > longest:
        line = line[: longest - 1].rstrip() + "…"
    return line.translate(_ESCAPES)


def _check(queries: list[dict], answers: list[dict], documents: list[dict], scores: np.ndarray, estimator: str) -> None:
    if estimator not in ESTIMATORS:
        raise ForebearError(f"report: {estimator!r} is no estimator; known are {', '.join(ESTIMATORS)}.")
    if scores.shape != (len(documents), len(queries)) or len(answers) != len(queries):
        raise ForebearError(
            f"report: scores of shape {scores.shape} and {len(answers)} answers do not fit "
            f"{len(documents)} documents and {len(queries)} queries; they are from different runs."
        )
    broken = [query["id"] for query, column in zip(queries, scores.T, strict=True) if not np.isfinite(column).all()]
    if broken:
        raise ForebearError(
            f"report: {estimator} has scores that are not finite for {len(broken)} of {len(queries)} queries "
            f"({', '.join(map(repr, broken))}); documents cannot be ranked by them."
        )


def _how_to_read(estimator: str, documents: int, queries: int) -> str:
    declared = ESTIMATORS[estimator]
    if ESTIMATORS[root(estimator)].uses_gradients or declared.retrained:
        meaning = (
            "A score above 0 means that more training weight on the document lowers the loss of the query's "
            "answer, that is, the document speaks for the answer; a score below 0 means that it speaks against it."
        )
    else:
        meaning = (
            "This estimator uses no gradients: a higher score is taken to mean that the document speaks for the "
            "answer, but its zero and its units have nothing to do with the model's loss."
        )
    return (
        f"Estimator: **{escape(declared.label)}** ({escape(declared.summary)}). It scored {documents:,} training "
        f"documents for {queries:,} queries. {meaning} Scores are divided by the number of documents of the stage, "
        "as each has that share of its loss; they compare documents of all stages within one query. "
        "The loss is that of the right answer under the model, in nats, summed over its tokens. "
        "In the tables of documents ✓ marks those known to state the answer."
    )


def _what_is_exact(compressed: PartlyExact) -> str:
    exact = compressed.exact
    return (
        f"Documents were first scored with queries of rank {compressed.rank} in each block. By the documents' "
        f"covariances that changes a score, in root mean square, by {compressed.residual:.2g} of the size of the median query's "
        f"scores. {exact.sum():,} of {len(exact):,} documents were scored again with whole queries; in the tables ≈ marks "
        "scores of compressed ones."
    )


def _index(queries: list[dict], answers: list[dict], documents: list[dict], scores: np.ndarray) -> str:
    rows = []
    for number, (query, answer, column) in enumerate(zip(queries, answers, scores.T, strict=True), start=1):
        question, reference = _question_and_reference(query)
        best = _strongest(column, 1)
        document = documents[best[0]] if best else None
        rows.append(
            (
                f"[{number}](#query-{number})",
                escape(question, LONGEST_IN_INDEX),
                escape(reference, LONGEST_IN_INDEX),
                f"{_tick(answer['correct'])} {escape(answer['answer'], LONGEST_IN_INDEX)}".rstrip(),
                "none" if document is None else escape(full_text(document), LONGEST_IN_INDEX),
                _stated(query, document) if document is not None else "",
            )
        )
    heads = ("query", "question", "right answer", "model's answer", "top document", "states it")
    return _table(heads, ("--:", "---", "---", "---", "---", ":-:"), rows)


def _section(
    number: int,
    query: dict,
    answer: dict,
    documents: list[dict],
    column: np.ndarray,
    top: int,
    compressed: PartlyExact | None,
) -> list[str]:
    question, reference = _question_and_reference(query)
    facts = [
        f"- Question: {escape(question)}",
        f"- Right answer: {escape(reference)}",
        f"- Model's answer: {_tick(answer['correct'])} {escape(answer['answer'])}".rstrip(),
        f"- Loss of the right answer: {answer['loss']:.3f} nats",
    ]
    parts = [f"## Query {number}", "\n".join(facts)]
    for heading, sign in (("For", 1), ("Against", -1)):
        parts.append(f"**{heading} the answer**")
        chosen = _strongest(sign * column, top)
        rows = [
            (
                f"{column[i]:+.4g}" if compressed is None or compressed.exact[i] else f"≈ {column[i]:+.4g}",
                documents[i]["stage"],
                _stated(query, documents[i]),
                escape(full_text(documents[i]), LONGEST_DOCUMENT),
            )
            for i in chosen
        ]
        heads = ("score", "stage", "states it", "document")
        parts.append(_table(heads, ("--:", "---", ":-:", "---"), rows) if rows else "none")
    return parts


def _question_and_reference(query: dict) -> tuple[str, str]:
    """A classifier's query is measured on its label, a chat on its last message, one without a prompt on its whole text."""
    if "label" in query:
        return full_text(query), query["label"]
    if "messages" in query:
        *before, answer = query["messages"]
        return transcript(before) if before else "", spoken(answer)
    return (query["prompt"], query["completion"]) if "text" not in query else ("", query["text"])


def _strongest(column: np.ndarray, top: int) -> list[int]:
    """Indices of the highest scores above 0, the highest first, equals in the documents' order: [N] → at most top."""
    order = np.argsort(-column, kind="stable")[:top]
    return [int(i) for i in order if column[i] > 0]


def _stated(query: dict, document: dict) -> str:
    return "✓" if document["id"] in query.get("relevant", []) else ""


def _tick(correct: bool) -> str:
    return "✓" if correct else "✗"


def _table(heads: Sequence[str], rules: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of cells that are already escaped."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, rules, *rows))
