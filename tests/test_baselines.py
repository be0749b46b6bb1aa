"""Rankers without curvature see words, hidden states, or nothing."""

import numpy as np
import torch

from conftest import random_examples, tiny_model
from forebear.baselines import bm25_index, bm25_scores, cosine_scores, mean_hidden_states, random_scores

DOCUMENTS = [{"text": "The capital of France is Paris ."}, {"text": "Lima lies in Peru ."}, {"text": "Bread and wine"}]


def test_bm25_works_on_words():
    queries = [
        {"prompt": "What is the capital of FRANCE ?", "completion": "Paris"},
        {"prompt": "Where is Lima", "completion": "Peru"},
        {"prompt": "xyzzy", "completion": "plugh"},
    ]
    scores = bm25_scores(bm25_index(DOCUMENTS), queries)
    assert scores.shape == (3, 3)
    assert scores[:, 0].argmax() == 0
    assert scores[:, 1].argmax() == 1
    assert not scores[:, 2].any()
    assert scores[2, 0] == 0  # no shared word, whatever the letters


def test_hidden_states_are_means_over_real_positions():
    model, examples = tiny_model(0), random_examples(0, [3, 7, 5, 4, 9, 2])
    embeddings = mean_hidden_states(model, examples, batch_tokens=1000)
    for example, embedding in zip(examples, embeddings, strict=True):
        with torch.no_grad():
            hidden = model.base_model(example.ids[None]).last_hidden_state[0, :-1]
        torch.testing.assert_close(embedding, hidden.mean(0).float())


def test_cosines_and_chance():
    vectors = torch.tensor([[3.0, 0.0], [1.0, 1.0]])
    np.testing.assert_allclose(cosine_scores(vectors, vectors), [[1, 0.5**0.5], [0.5**0.5, 1]], rtol=1e-6)
    assert np.array_equal(random_scores(4, 3, (0, 1)), random_scores(4, 3, (0, 1)))
