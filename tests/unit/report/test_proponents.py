"""The page of proponents: order, ticks, escaping."""

import numpy as np
import pytest

from forebear.errors import ForebearError
from forebear.report.proponents import PartlyExact, escape, proponents_markdown
from one_report import ANSWERS, DOCUMENTS, QUERIES, SCORES


def page(queries=QUERIES, answers=ANSWERS, documents=DOCUMENTS, scores=SCORES, top=2, estimator="multistage-ekfac"):
    return proponents_markdown("facts", queries, answers, documents, scores, top, estimator)


def section(text: str, number: int) -> str:
    return text.split(f"## Query {number}\n")[1].split("\n## ")[0]


def table(part: str) -> list[list[str]]:
    """The body of the first table in a piece of the page."""
    lines = [line for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def test_documents_come_in_order_with_their_sign_stage_and_tick():
    favourable, adverse = section(page(), 1).split("**Against the answer**")
    assert table(favourable) == [
        ["+3", "second", "", "Where is Rome ? Italy"],
        ["+2", "first", "✓", "The capital of France is Paris ."],
    ]
    assert [row[0] for row in table(adverse)] == ["-2.5", "-1"]


def test_top_limits_the_tables_and_equals_keep_their_order():
    tables = section(page(top=1), 1).split("**Against the answer**")
    assert [[row[0] for row in table(part)] for part in tables] == [["+3"], ["-2.5"]]
    scores = np.ones((4, 2))
    assert [row[3][:11] for row in table(section(page(scores=scores, top=3), 1))] == [
        "The capital", "a \\| pipe a", "Where is Ro",
    ]  # fmt: skip


def test_only_negative_scores_speak_against_and_only_positive_for():
    assert section(page(), 2).split("**Against the answer**")[1].strip() == "none"
    text = page(scores=-np.abs(SCORES))
    assert section(text, 1).split("**For the answer**")[1].split("**Against")[0].strip() == "none"
    assert table(text.split("## Query 1")[0])[0][4:] == ["none", ""]
    zeros = page(scores=np.zeros((4, 2)))
    assert section(zeros, 1).count("none") == 2


def test_index_shows_answers_and_top_document():
    rows = table(page().split("## Query 1")[0])
    assert rows[0] == ["[1](#query-1)", "Capital of France ?", "Paris", "✓ Paris", "Where is Rome ? Italy", ""]
    assert rows[1][3] == "✗ Milan"
    swapped = SCORES[[2, 1, 0, 3]]
    assert table(page(scores=swapped).split("## Query 1")[0])[0][5] == "✓"


def test_section_has_question_answers_and_loss():
    text = section(page(), 2)
    assert "- Question: Capital of Italy ?\n- Right answer: Rome\n- Model's answer: ✗ Milan\n" in text
    assert "3.500 nats" in text


def test_introduction_says_what_scored_how_much_and_what_the_sign_means():
    introduction = page().split("\n\n")[1]
    assert "**multi-stage EK-FAC**" in introduction
    assert "4 training documents for 2 queries" in introduction
    assert "lowers the loss" in introduction
    assert "uses no gradients" in page(estimator="bm25").split("\n\n")[1]


def test_scores_of_compressed_queries_are_marked():
    compressed = PartlyExact(8, 0.123, np.array([True, True, False, True]))
    text = proponents_markdown("facts", QUERIES, ANSWERS, DOCUMENTS, SCORES, 2, "multistage-ekfac", compressed)
    assert "queries of rank 8" in text
    assert "by 0.12 of the size" in text
    assert "3 of 4 documents were scored again" in text
    assert [row[0] for row in table(section(text, 1))[:2]] == ["≈ +3", "+2"]
    assert "≈" not in page()
    assert "rank" not in page()


def test_markup_is_escaped():
    assert escape("a | b\n`c` <d> & *e* _f_ \\ $g$ [h](i)") == (
        "a \\| b \\`c\\` &lt;d&gt; &amp; \\*e\\* \\_f\\_ \\\\ \\$g\\$ \\[h\\](i)"
    )
    assert "a \\| pipe and \\`code\\` &lt;b&gt;" in page()
    queries = [{**QUERIES[0], "prompt": "x | y\nz"}, QUERIES[1]]
    assert "x \\| y z" in page(queries=queries)
    lines = [line for line in page(queries=queries).splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in lines} == {5, 7}  # four and six cells


def test_long_documents_are_cut():
    assert escape("x" * 300, 300) == "x" * 300
    assert escape("x" * 301, 300) == "x" * 299 + "…"
    (row,) = [row for row in table(section(page(), 2)) if row[0] == "+3"]
    assert len(row[3]) <= 300
    assert row[3].endswith("word…")


def test_queries_may_be_texts():
    queries = [{"id": "q0", "text": "All of it ."}, {"id": "q1", "text": "Said in 1863 .", "label": "early"}]
    assert "- Right answer: All of it ." in page(queries=queries)
    assert "- Question: Said in 1863 .\n- Right answer: early" in page(queries=queries)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_refused_by_name(value):
    scores = SCORES.copy()
    scores[3, 1] = value
    with pytest.raises(ForebearError, match=r"1 of 2 queries \('q1'\)"):
        page(scores=scores)


def test_mismatched_inputs_are_refused():
    with pytest.raises(ForebearError, match="do not fit"):
        page(scores=SCORES.T)
    with pytest.raises(ForebearError, match="do not fit"):
        page(answers=ANSWERS[:1])
    with pytest.raises(ForebearError, match="no estimator"):
        page(estimator="oracle")


def test_the_same_input_gives_the_same_page():
    assert page() == page()
