"""The estimators, declared: what each reads, which inverses it applies, where it looks.

Gradient-based estimators are rows of one table. They differ in the columns (which
preconditioned query they read), in the parameters at which the documents' gradients are
taken, in the blocks they count, and in normalisation; one pass over the documents serves
all that share the parameters.
"""

from dataclasses import dataclass
from typing import Literal

Solver = Literal["cg", "lissa", "arnoldi", "pcg", "reference", "check"]


@dataclass(frozen=True)
class Columns:
    """A set of preconditioned queries: which stages' inverses are applied to ∇m.

    `stages` is relative to the documents' stage s in a chain of n: "chain" is n..s,
    "later" is n..s+1, "own" is s alone, "joint" is that stage's curvature at
    the last model, and "none" leaves the gradient as it is.
    """

    stages: Literal["chain", "later", "own", "joint", "none"]
    curvature: Literal["ekfac", "kfac"] = "ekfac"
    unrolled: Literal["sgd", "adam"] | None = None  # SOURCE in place of inverses, in which optimizer's time
    solver: Solver | None = None  # on the exact Gauss-Newton matrix; EK-FAC's Λ still sets the damping


# Named as the estimator that they were made for; "gradient" is the raw query gradient.
COLUMNS = {
    "gradient": Columns("none"),
    "multistage-ekfac": Columns("chain"),
    "multistage-kfac": Columns("chain", "kfac"),
    "singlestage-ekfac": Columns("joint"),
    "pretrain-ekfac": Columns("own"),
    "finetune-ekfac": Columns("later"),
    "multistage-source": Columns("chain", unrolled="sgd"),
    "multistage-source-adam": Columns("chain", unrolled="adam"),
    "multistage-pcg": Columns("chain", solver="pcg"),
    "cg": Columns("chain", solver="cg"),
    "lissa": Columns("chain", solver="lissa"),
    "arnoldi": Columns("chain", solver="arnoldi"),
    "reference": Columns("chain", solver="reference"),
    "reference-check": Columns("chain", solver="check"),
}


@dataclass(frozen=True)
class Estimator:
    """One row of the comparison."""

    label: str  # as figures show it
    summary: str
    columns: str | None = None  # key of COLUMNS; None for estimators without gradients
    at_last: bool = False  # documents' gradients at the last model instead of their own stage's
    kinds: tuple[str, ...] = ("attention", "mlp")
    cosine: bool = False
    base: str | None = None  # the estimator whose scores are divided by self-influence
    retrained: bool = False  # reads the models of the bank of retrainings
    runs_model: bool = True  # not where words alone, or chance, rank the documents

    @property
    def uses_gradients(self) -> bool:
        return self.columns is not None

    @property
    def needs_training_record(self) -> bool:
        return self.retrained or (self.uses_gradients and COLUMNS[self.columns].unrolled is not None)

    @property
    def is_expensive(self) -> bool:
        """Whether it costs many times what the others do: a solver, or factors of further chains."""
        further = self.retrained and not self.at_last
        return further or (self.uses_gradients and COLUMNS[self.columns].solver is not None)

    @property
    def is_baseline(self) -> bool:
        return self.columns is None and self.base is None and not self.retrained


ESTIMATORS: dict[str, Estimator] = {
    "multistage-ekfac": Estimator(
        "multi-stage EK-FAC", "the inverse of every stage from the last to the documents'", "multistage-ekfac"
    ),
    "multistage-ekfac-mlp": Estimator(
        "multi-stage EK-FAC, MLP", "the same on the MLP blocks alone", "multistage-ekfac", kinds=("mlp",)
    ),
    "multistage-relatif": Estimator(
        "multi-stage RelatIF",
        "multi-stage EK-FAC divided by the root of the document's self-influence",
        base="multistage-ekfac",
    ),
    "multistage-ensemble": Estimator(
        "multi-stage RelatIF, ensemble",
        "the same averaged over retrained chains of another seed",
        retrained=True,
    ),
    "multistage-kfac": Estimator(
        "multi-stage K-FAC", "the same with Kronecker-factored eigenvalues", "multistage-kfac"
    ),
    "multistage-source": Estimator(
        "SOURCE", "unrolled gradient descent, one segment a stage, with the recorded training time", "multistage-source"
    ),
    "multistage-source-adam": Estimator(
        "SOURCE, Adam", "the same with the time divided by AdamW's mean √v̂", "multistage-source-adam"
    ),
    "multistage-pcg": Estimator(
        "multi-stage EK-FAC + CG",
        "CG on the exact Gauss-Newton matrix of every stage, from EK-FAC's solution and preconditioned with it",
        "multistage-pcg",
    ),
    "cg": Estimator("multi-stage CG", "the same from zero, without EK-FAC", "cg"),
    "lissa": Estimator("multi-stage LiSSA", "the Neumann series of every stage's inverse, on samples", "lissa"),
    "arnoldi": Estimator(
        "multi-stage Arnoldi", "every stage's exact Gauss-Newton matrix in a Krylov space of low rank", "arnoldi"
    ),
    "reference": Estimator(
        "converged CG", "preconditioned CG to the tolerance, which others are compared with", "reference"
    ),
    "reference-check": Estimator(
        "converged CG, second run", "the same from a random start, without a preconditioner", "reference-check"
    ),
    "singlestage-ekfac": Estimator(
        "single-stage EK-FAC",
        "the classical influence function with everything at the last model",
        "singlestage-ekfac",
        at_last=True,
    ),
    "pretrain-ekfac": Estimator("first inverse only", "only the documents' own stage's inverse", "pretrain-ekfac"),
    "finetune-ekfac": Estimator("last inverse only", "only the later stages' inverses", "finetune-ekfac"),
    "gradient-dot": Estimator("gradient dot product", "no curvature", "gradient"),
    "gradient-cosine": Estimator("gradient cosine", "no curvature, gradients of unit length", "gradient", cosine=True),
    "trak": Estimator("TRAK", "projected gradients of an ensemble of retrained models", at_last=True, retrained=True),
    "embedding": Estimator("embedding", "cosine of mean last hidden states of the last model"),
    "cka": Estimator("CKA", "linear CKA of last hidden states of the last model"),
    "minilm": Estimator("MiniLM", "cosine of sentence embeddings by all-MiniLM-L6-v2"),
    "bm25": Estimator("BM25", "word overlap of document and query", runs_model=False),
    "random": Estimator("random", "scores drawn at random", runs_model=False),
}


def with_bases(estimators: list[str]) -> list[str]:
    """The estimators and those that they are made from, each once, in order."""
    names: list[str] = []
    for name in estimators:
        while name is not None:
            names.append(name)
            name = ESTIMATORS[name].base
    return list(dict.fromkeys(names))


def root(estimator: str) -> str:
    """The estimator that one is finally made from; itself, if from none."""
    return with_bases([estimator])[-1]
