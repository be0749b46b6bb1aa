"""Agreement with a reference: textbook correlations, and the figure shows them where they are."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.stats import pearsonr, spearmanr

from copies import ROOT
from forebear.config.reading import parse_config
from forebear.data.corpora.prose import build_prose
from forebear.errors import ForebearError
from forebear.evaluation.agreement import agreement
from forebear.figures.agreement import plot_agreement


def test_correlations_are_scipys_averaged_over_queries():
    generator = np.random.default_rng(0)
    scores, reference = generator.normal(size=(30, 4)), generator.normal(size=(30, 4))
    row = agreement(scores, reference, seed=0)
    by_query = [spearmanr(scores[:, k], reference[:, k]).statistic for k in range(4)]
    assert row["spearman"] == pytest.approx(np.mean(by_query))
    assert row["spearman_min"] == pytest.approx(min(by_query))
    assert row["pearson"] == pytest.approx(np.mean([pearsonr(scores[:, k], reference[:, k])[0] for k in range(4)]))
    assert row["spearman_low"] <= row["spearman"] <= row["spearman_high"]


def test_a_reference_agrees_with_itself_whatever_its_scale():
    reference = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    row = agreement(1e-6 * reference, reference, seed=0)
    assert row["spearman"] == pytest.approx(1)
    assert row["pearson"] == pytest.approx(1)


def test_the_figure_has_both_correlations_of_every_estimator():
    row = {"spearman": 0.9, "spearman_low": 0.8, "spearman_high": 0.95, "pearson": 0.7, "seconds": 3.0}
    table = pd.DataFrame([{"estimator": "multistage-ekfac", **row}, {"estimator": "bm25", **row, "spearman": 0.1}])
    lines = {
        line.get_gid(): line.get_xydata().tolist() for line in plot_agreement(table, 0.9999, 30.0, "t").axes[0].lines
    }
    assert lines["multistage-ekfac/spearman"] == [[3.0, 0.9]]
    assert lines["bm25/pearson"] == [[3.0, 0.7]]


def test_queries_of_the_prose_continue_passages_that_are_no_documents():
    corpus = build_prose(passages=50, query_passages=4)
    assert (len(corpus["pretraining"]), len(corpus["queries"])) == (50, 4)
    documents = {document["text"] for document in corpus["pretraining"]}
    assert not any(f"{q['prompt']} {q['completion']}" in documents for q in corpus["queries"])


def test_the_prose_may_come_from_a_file_in_the_format_of_ptb_text_only(tmp_path):
    """As the study's config shows it: the same line with the `#` taken away."""
    file = tmp_path / "ptb.jsonl"
    sentences = [" ".join(f"word{k}" for k in range(n)) for n in (14, 15, *range(20, 30), 45, 46)]
    file.write_text("".join(json.dumps({"sentence": sentence}) + "\n" for sentence in sentences))
    shown = (ROOT / "studies/validation.yaml").read_text()
    text = re.sub(r"# (file:) \S+", rf"\1 {file}", shown)
    corpus = parse_config(yaml.safe_load(text)).studies["validation"].corpus
    assert corpus.file == file
    built = build_prose(passages=9, query_passages=3, file=corpus.file)
    texts = [d["text"] for d in built["pretraining"]] + [f"{q['prompt']} {q['completion']}" for q in built["queries"]]
    assert sorted(texts) == sorted(sentences[1:-1])
    with pytest.raises(ForebearError, match="12 passages of 15 to 45 words, but the corpus takes 510"):
        build_prose(corpus.passages, corpus.query_passages, corpus.file)
