"""The memory that jobs on models ask a scheduler for: what a study's `memory` multiplies, and each further attempt doubles."""

import math

PROCESS_BYTES = 450 << 20  # the interpreter with its libraries

# MB, by job.
ASKED_MB = {
    "training": 2000,
    "answers": 2000,
    "baselines": 2000,
    "covariances": 4000,
    "eigenvalues": 4000,
    "self-influence": 4000,
    "query gradients": 4000,
    "solutions": 6000,
    "scores": 6000,
}


def memory_for(job: str, wanted: float) -> float:
    """The `memory` with which a job asks for so many bytes at its first attempt, rounded up to tenths."""
    return math.ceil(10 * wanted / 2**20 / ASKED_MB[job]) / 10
