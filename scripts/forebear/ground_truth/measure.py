"""The losses of the queries at retrained models."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from forebear.data.chat import Chat
from forebear.data.records import record_key
from forebear.data.sequences import encode
from forebear.ground_truth.bank import checked_manifest
from forebear.ground_truth.files import read_measurements, write_measurements
from forebear.models.checkpoints import load_model, load_tokenizer
from forebear.models.heads import classes_by_label
from forebear.models.losses import evaluate_losses
from forebear.runtime.progress import progress


def measure_missing(
    bank: Path,
    keys: Sequence[str],
    last: str,
    queries: Sequence[dict],
    max_length: int,
    gpus: int,
    trust_remote_code: bool = False,
    chat: Mapping | None = None,
) -> np.ndarray:
    """The loss of every query at the last stage's model of every retraining, [R, Q] float32 in nats.

    What was measured before is read back; the rest is kept in the retraining's folder.

    Args:
        queries: records.
        trust_remote_code, chat: as of `gradients.point.open_point`.
    """
    wanted = {record_key(query): query for query in queries}
    measurements = []
    for key in progress(keys, "measurements", "model"):
        path = bank / key / "measurements.h5"
        known = read_measurements(path)
        new = {query: record for query, record in wanted.items() if query not in known}
        if new:
            folder = checked_manifest(bank, key, last).parent
            model = load_model(folder, gpus, trust_remote_code=trust_remote_code)
            tokenizer = load_tokenizer(folder, trust_remote_code)
            made_of = (max_length, False, classes_by_label(model), Chat(**chat or {}))
            losses = evaluate_losses(model, encode(list(new.values()), tokenizer, *made_of))
            known |= dict(zip(new, losses.tolist(), strict=True))
            write_measurements(path, known)
        measurements.append([known[record_key(query)] for query in queries])
    return np.array(measurements, np.float32)
