"""Which curvature points a study's chain has, and which passes over documents: for the rules."""

from forebear.estimators import COLUMNS, ESTIMATORS, with_bases


def columns_of(estimators: list[str]) -> list[str]:
    """The column sets that some estimators need, without repetition, in order."""
    return list(dict.fromkeys(ESTIMATORS[name].columns for name in estimators if ESTIMATORS[name].uses_gradients))


def scoring_passes(estimators: list[str], stages: list[str], attributed: str) -> dict[str, list[str]]:
    """The passes over one stage's documents: stage at whose model they are looked at → estimators served."""
    passes: dict[str, list[str]] = {}
    for name in with_bases(estimators):
        if ESTIMATORS[name].uses_gradients:
            stage = stages[-1] if ESTIMATORS[name].at_last else attributed
            passes.setdefault(stage, []).append(name)
    return passes


def inverse_points(columns: str, stages: list[str], attributed: str) -> list[str]:
    """The curvature points whose inverses are applied to ∇m, first applied first.

    A point is a stage's name, or `{data}@{model}` for one stage's documents at another
    stage's model.
    """
    last, own = stages[-1], stages.index(attributed)
    later = stages[:own:-1]
    return {
        "none": [],
        "own": [attributed],
        "later": later,
        "chain": [*later, attributed],
        "joint": [f"{attributed}@{last}" if attributed != last else attributed],
    }[COLUMNS[columns].stages]


def documents_point(columns: str, stages: list[str], attributed: str) -> str:
    """The curvature point of the documents' gradients that preconditioned queries are multiplied with."""
    return inverse_points(columns, stages, attributed)[0] if COLUMNS[columns].stages == "joint" else attributed
