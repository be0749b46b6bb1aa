"""Agreement with a reference: textbook correlations, and the figure shows them where they are."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr, spearmanr

from forebear.agreement import agreement
from forebear.agreement_plot import plot_agreement
from forebear.prose import build_prose


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
    lines = {line.get_gid(): line.get_xydata().tolist() for line in plot_agreement(table, 0.9999, "t").axes[0].lines}
    assert lines["multistage-ekfac/spearman"] == [[3.0, 0.9]]
    assert lines["bm25/pearson"] == [[3.0, 0.7]]


def test_queries_of_the_prose_continue_passages_that_are_no_documents():
    corpus = build_prose(passages=50, query_passages=4)
    assert (len(corpus["pretraining"]), len(corpus["queries"])) == (50, 4)
    documents = {document["text"] for document in corpus["pretraining"]}
    assert not any(f"{q['prompt']} {q['completion']}" in documents for q in corpus["queries"])
