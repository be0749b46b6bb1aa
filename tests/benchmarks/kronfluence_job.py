"""The benchmarks' jobs in kronfluence's terms."""

import copy
import tempfile
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from torch.utils.data import TensorDataset
from transformers import PreTrainedModel

from forebear.data.batches import IGNORED, collate
from forebear.data.sequences import Example
from forebear.models.losses import summed_loss

BATCH_SIZES = (32, 64, 128, 256)


class LanguageModelling(Task):
    """forebear's loss, measurement, positions and maps."""

    def __init__(self, modules: list[str]) -> None:
        self._modules = modules

    def compute_train_loss(self, batch, model, sample=False):
        ids, labels, _ = batch
        logits = model(ids, use_cache=False).logits
        if sample:
            targets = labels != IGNORED
            labels = labels.clone()
            labels[targets] = torch.multinomial(logits.detach()[targets].softmax(-1), 1).squeeze(1)
        return summed_loss(logits, labels)

    def compute_measurement(self, batch, model):
        return self.compute_train_loss(batch, model)

    def get_influence_tracked_modules(self):
        return self._modules

    def get_attention_mask(self, batch):
        return batch[2]


def padded(examples: Sequence[Example]) -> TensorDataset:
    """All sequences padded to the longest: ids, labels, and the mask of the positions that count."""
    batch = collate(examples, range(len(examples)))
    return TensorDataset(batch.ids, batch.labels, batch.positions.long())


def measure(
    model: PreTrainedModel,
    modules: Sequence[str],
    documents: Sequence[Example],
    queries: Sequence[Example],
    seconds_of: Callable[[Callable], float],
    batch_sizes: Sequence[int] = BATCH_SIZES,
) -> tuple[dict[str, float], dict[str, int], np.ndarray]:
    """Seconds of every stage, the batch size that was the fastest for it, and the scores [N, Q].

    All queries are one batch, because each batch of queries costs a pass over the documents.
    """
    task = LanguageModelling([module.replace("/", ".") for module in modules])
    prepared = prepare_model(copy.deepcopy(model), task)
    train, query = padded(documents), padded(queries)
    factors = {"factor_args": FactorArguments(strategy="ekfac"), "overwrite_output_dir": True}
    wanted = {"score_args": ScoreArguments(damping_factor=None), "overwrite_output_dir": True}
    seconds, best = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        analyzer = Analyzer(
            "benchmark", prepared, task, cpu=model.device.type == "cpu", disable_tqdm=True, output_dir=folder
        )

        def fastest(stage: str, run: Callable[[int], None]) -> None:
            trials = {size: seconds_of(partial(run, size)) for size in batch_sizes}
            best[stage] = min(trials, key=trials.get)
            seconds[stage] = trials[best[stage]]

        fastest("covariances", lambda size: analyzer.fit_covariance_matrices("ekfac", train, size, **factors))
        seconds["eigenbasis"] = seconds_of(lambda: analyzer.perform_eigendecomposition("ekfac", **factors))
        fastest("eigenvalues", lambda size: analyzer.fit_lambda_matrices("ekfac", train, size, **factors))
        fastest(
            "queries and scores",
            lambda size: analyzer.compute_pairwise_scores("s", "ekfac", query, train, len(query), size, **wanted),
        )
        scores = analyzer.load_pairwise_scores("s")["all_modules"]
    return seconds, best, scores.T.numpy()
