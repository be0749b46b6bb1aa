"""The config's schema of one study: every key, its default and what it means; corpora are in `corpus`."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from forebear.config.corpus import EMBEDDED, Checkpoint, Corpus, FileCorpus, Section, TracingCorpus
from forebear.errors import ForebearError
from forebear.estimators import ESTIMATORS, root

TASKS = ("language_modelling", "classification")  # in the order in which a chain may have them
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


class Training(Section):
    """AdamW under a one-cycle schedule."""

    epochs: int = Field(ge=1)
    """Passes over the stage's sequences."""
    batch_size: int = Field(32, ge=1)
    """Sequences per optimizer step."""
    learning_rate: float = Field(gt=0)
    """Peak of the one-cycle schedule."""
    weight_decay: float = Field(0.01, ge=0)
    """AdamW's decoupled weight decay."""
    warmup: float = Field(0.1, ge=0, le=1)
    """Fraction of the steps in which the learning rate rises."""


class Damping(Section):
    """How much is added to a stage's curvature before it is inverted."""

    relative: float | None = Field(None, ge=0)
    """ρ: each block's damping is ρ times the mean of its eigenvalues."""
    absolute: float | None = Field(None, ge=0)
    """λ: the same damping for every block."""

    @model_validator(mode="after")
    def _exactly_one(self):
        if (self.relative is None) == (self.absolute is None):
            raise ValueError("give either `relative` or `absolute`")
        return self


class Stage(Section):
    """One training stage, in the order in which the model went through them."""

    name: Name
    """Names the stage's files and its documents in `corpus`."""
    task: Literal[TASKS] = "language_modelling"
    """What it learns: `language_modelling`, or `classification` by `label` with a new head."""
    training: Training | None = None
    """How the stage is trained; `checkpoint` is the other possibility."""
    checkpoint: Checkpoint | None = None
    """The published model that came out of the stage, in place of training it here."""
    damping: Damping
    """Damping of the stage's curvature; a plain number is `relative`."""
    alpha: float | Literal["auto"] = "auto"
    """α, the strength of the pull to the stage before; `auto` reads it off the training record."""

    @field_validator("damping", mode="before")
    @classmethod
    def _plain_number_is_relative(cls, value):
        return {"relative": value} if isinstance(value, int | float) else value

    @field_validator("alpha")
    @classmethod
    def _positive(cls, value):
        if value != "auto" and value <= 0:
            raise ValueError("must be positive, or `auto`")
        return value

    @model_validator(mode="after")
    def _trained_here_or_elsewhere(self):
        if (self.training is None) == (self.checkpoint is None):
            raise ValueError("give either `training` or `checkpoint`")
        return self


class Chat(Section):
    """How records with `messages` become tokens and targets."""

    loss: Literal["assistant", "last"] = "assistant"
    """Which turns of the assistant carry loss: all, or the `last`; a query is measured on its last message."""
    template: str | None = None
    """A Jinja chat template, or a file that has one, in place of the tokenizer's own."""

    @property
    def settings(self) -> dict[str, str | None]:
        """As jobs take them, with the template itself in place of its file.

        Raises:
            ForebearError: the file cannot be read.
        """
        template = self.template
        if template and "{" not in template:
            try:
                template = Path(template).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ForebearError(
                    f"config: `chat.template`: the file {template} cannot be read; give a Jinja template or its file."
                ) from error
        return {"loss": self.loss, "template": template}


class GroundTruth(Section):
    """Retrainings on random subsets of the attributed stage's documents."""

    subsets: int = Field(32, ge=3)
    """How many subsets; more extend the bank, and nothing is retrained twice."""
    fraction: float = Field(0.5, gt=0, lt=1)
    """Fraction of the documents in each subset."""
    repeats: int = Field(8, ge=3)
    """How many of the subsets are retrained with another seed too, for the noise ceiling."""
    shards: int = Field(2, ge=1)
    """Into how many jobs the retrainings are split."""
    accept_other_versions: bool = False
    """Use finished retrainings of other versions of torch and transformers, in place of training again."""

    @model_validator(mode="after")
    def _repeats_are_subsets(self):
        if self.repeats > self.subsets:
            raise ValueError("`repeats` cannot exceed `subsets`")
        return self


class Ensemble(Section):
    """The chains of `multistage-ensemble`: retrained with another seed than those that the LDS is measured on."""

    members: int = Field(3, ge=1)
    """Chains that are averaged over; at most `repeats` of the ground truth, whose models they are."""


class Sweep(Section):
    """The grid of the damping figure, for the first attributed stage."""

    alpha: list[float] = Field([1e-5, 1e-3, 0.1, 10.0], min_length=1)
    """α of the stages after the documents'."""
    later: list[float] = Field([1e-3, 0.01, 0.1, 1.0, 10.0], min_length=1)
    """ρ, the relative damping of those stages."""
    own: list[float] = Field([1e-5, 1e-4, 1e-3, 0.01, 0.1, 1.0], min_length=1)
    """ρ of the documents' stage."""


class Trak(Section):
    """The ensemble of TRAK: models retrained with another seed than those that the LDS is measured on."""

    members: int = Field(3, ge=1)
    """Models in TRAK's ensemble; at most `repeats` of the ground truth, whose models they are."""
    side: int = Field(16, ge=1)
    """A sequence has `side`² features; choose fewer than there are documents."""


class Solvers(Section):
    """The estimators on the exact Gauss-Newton matrix, which cost several passes for every query."""

    queries: int = Field(16, ge=1)
    """How many of the queries they run on, evenly spaced."""
    sequences: int | None = Field(None, ge=1)
    """How many sequences of each stage the matrix is over, drawn at random; all by default."""
    reference_tolerance: float = Field(0.001, gt=0, lt=1)
    """‖b − Hx‖ / ‖b‖ of the estimators `reference` and `reference-check`, which end in an error if they do not get there."""
    tolerance: float = Field(0.01, gt=0, lt=1)
    """CG stops when ‖b − Hx‖ is this part of ‖b‖; so does LiSSA, if it gets there."""
    iterations: int = Field(10, ge=0)
    """The most iterations of `cg`."""
    refinements: int = Field(3, ge=0)
    """The most iterations of `multistage-pcg`; none is EK-FAC, one EK-FAC with the best length."""
    rank: int = Field(32, ge=1)
    """Krylov vectors of `arnoldi`."""
    lissa_steps: int = Field(64, ge=1)
    """The most steps of `lissa`."""
    lissa_sequences: int = Field(64, ge=1)
    """Sequences behind each of its steps."""


class Compression(Section):
    """Preconditioned queries of low rank: less memory, and fewer passes where whole ones take several."""

    rank: int | None = Field(None, ge=1)
    """Outer products that stand for a query in each block; by default queries are not compressed."""
    rescore: int = Field(20, ge=1)
    """So many of the highest and of the lowest scores of each query are computed again, with whole queries."""


class Cost(Section):
    """The figure of cost against model size, on freshly initialised models."""

    sizes: list[dict[str, int]] = Field([])
    """Options that replace those of `model`, one entry a model; at least three models."""
    documents: int = Field(100, ge=1)
    """How many of the first attributed stage's documents they are fitted on and score."""
    queries: int = Field(10, ge=1)
    """For how many of the queries."""
    repeats: int = Field(3, ge=1)
    """Everything is measured so many times; the median counts."""

    @field_validator("sizes")
    @classmethod
    def _enough(cls, value):
        if 0 < len(value) < 3:
            raise ValueError("needs at least three sizes, or none")
        return value


class Study(Section):
    """A chain of stages, its data, and what is computed on it."""

    corpus: Corpus
    """Where documents and queries come from."""
    model: dict[str, str | int | float | bool] | None = None
    """The first stage's architecture, if it is trained: transformers' `model_type` and options of its config."""
    max_length: int = Field(64, ge=2)
    """Longest sequence in tokens; longer ones are cut, the targets kept."""
    chat: Chat = Chat()
    """Records with `messages`, by the tokenizer's chat template."""
    stages: list[Stage] = Field(min_length=1)
    """The chain, first stage first."""
    attributed_stages: list[str] = Field([])
    """The stages whose documents are scored, on one scale; the first by default."""
    estimators: list[str] = Field(
        [name for name, estimator in ESTIMATORS.items() if not estimator.is_expensive], min_length=1
    )
    """What is computed and compared; proponents are listed by the first. Solvers and ensembles cost many passes more."""
    split_heads: bool = False
    """Split fused attention maps into one curvature block per head and role."""
    label_samples: int = Field(1, ge=1)
    """How many labels are drawn from the model per position for each curvature factor."""
    batch_tokens: int = Field(4096, ge=1)
    """Padded tokens per batch in factors and scores."""
    ground_truth: GroundTruth = GroundTruth()
    """The retrainings that estimators are judged by."""
    sweep: Sweep = Sweep()
    """Dampings and α that results/figures/damping.png compares."""
    trak: Trak = Trak()
    """The estimator `trak`."""
    solvers: Solvers = Solvers()
    """What the estimators on the exact Gauss-Newton matrix may cost."""
    compression: Compression = Compression()
    """Scores of compressed queries."""
    cost: Cost = Cost()
    """What results/figures/cost_by_size.png measures."""
    top: int = Field(5, ge=1)
    """Documents shown for and against each query."""
    seed: int = Field(0, ge=0)
    """Of data and subsets."""
    training_seed: int = Field(0, ge=0)
    """Of initial weights, the order of training data, and sampled labels."""
    ensemble: Ensemble = Ensemble()
    """The estimator `multistage-ensemble`."""
    shards: int = Field(1, ge=1)
    """Into how many jobs each pass over a stage's documents is split: covariances, eigenvalues, scores, self-influence."""
    threads: int = Field(2, ge=1)
    """Processor threads of the factor and score jobs."""
    gpus: int = Field(0, ge=0)
    """GPUs of the training, factor and score jobs; over several the layers are spread, with each block's factors."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the passes in factors and scores; what is computed from them is in float32."""
    trust_remote_code: bool = False
    """Run the Python code that a published model may bring; read that code first, it can do anything that you can."""
    memory: float = Field(1.0, gt=0)
    """Multiplies the memory that jobs on models ask for; for a large model `python -m forebear.workflow.dry_run` says how much is enough."""

    @field_validator("corpus", mode="before")
    @classmethod
    def _embedded_or_files(cls, value):
        if isinstance(value, dict):
            if value.get("embedded", "facts") not in EMBEDDED:
                raise ValueError(
                    f"there is no embedded corpus {value['embedded']!r}; choose from {', '.join(EMBEDDED)}"
                )
            if "embedded" in value:
                return EMBEDDED[value["embedded"]](**value)
            return TracingCorpus(**value) if "trex" in value else FileCorpus(**value)
        return value

    @field_validator("model")
    @classmethod
    def _has_model_type(cls, value):
        if value is not None and "model_type" not in value:
            raise ValueError("needs `model_type`, for example gpt_neox")
        return value

    @field_validator("estimators")
    @classmethod
    def _known(cls, value):
        for name in value:
            if name not in ESTIMATORS:
                raise ValueError(f"there is no estimator {name!r}; choose from {', '.join(ESTIMATORS)}")
        if len(set(value)) < len(value):
            raise ValueError("an estimator is named twice")
        return value

    @model_validator(mode="after")
    def _proponents_are_exact(self):
        if self.compression.rank and self.compression.rescore < self.top:
            raise ValueError("`compression.rescore` cannot be less than `top`: shown scores are of whole queries")
        return self

    @model_validator(mode="after")
    def _bank_has_members(self):
        for name in ("ensemble", "trak"):
            if getattr(self, name).members > self.ground_truth.repeats:
                raise ValueError(f"`{name}.members` cannot exceed `ground_truth.repeats`")
        return self

    @model_validator(mode="after")
    def _stages_fit(self):
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError("two stages have the same name")
        tasks = [stage.task for stage in self.stages]
        if sorted(tasks, key=TASKS.index) != tasks:
            raise ValueError("a stage of language modelling cannot follow one of classification")
        for name in self.attributed_stages:
            if name not in names:
                raise ValueError(f"`attributed_stages` has {name!r}, which is none of the stages {', '.join(names)}")
        if self.candidates and len(self.attributed) > 1:
            raise ValueError("candidates stand for one attributed stage, but `attributed_stages` has several")
        for name in names:
            if name not in self.corpus.stages:
                raise ValueError(
                    f"the corpus has no documents for the stage {name!r}; it has {', '.join(sorted(self.corpus.stages))}"
                )
        return self

    @model_validator(mode="after")
    def _trained_stages_can_be_trained(self):
        if (self.model is None) == (self.stages[0].checkpoint is None):
            raise ValueError("give `model` if the first stage has `training`, and only then")
        if self.cost.sizes and self.model is None:
            raise ValueError("`cost.sizes` changes `model`, but the first stage is a published one")
        for stage in self.stages[1:]:
            if stage.checkpoint and stage.alpha == "auto":
                raise ValueError(f"the stage {stage.name!r} has no training record to read `alpha` off; give a number")
        return self

    @property
    def stage_names(self) -> list[str]:
        return [stage.name for stage in self.stages]

    @property
    def attributed(self) -> list[str]:
        """The stages whose documents are scored, in the order of the chain."""
        chosen = self.attributed_stages or self.stage_names[:1]
        return [name for name in self.stage_names if name in chosen]

    @property
    def undefined(self) -> dict[str, str]:
        """The study's estimators that are not defined on its chain, with the reason."""
        replaced = any(self.stage(name).task != self.stages[-1].task for name in self.attributed)
        reasons = {}
        for name in self.estimators:
            if replaced and ESTIMATORS[root(name)].at_last:
                reasons[name] = "the head was replaced"
            elif ESTIMATORS[root(name)].needs_training_record and not self.retrainable:
                reasons[name] = "no training recipe"
        return reasons

    @property
    def computed(self) -> list[str]:
        """The study's estimators that are defined on its chain."""
        return [name for name in self.estimators if name not in self.undefined]

    @property
    def candidates(self) -> Literal["traces", "neighbours"] | None:
        """What chooses the scored documents, where they are not the attributed stage's own."""
        if isinstance(self.corpus, TracingCorpus):
            return "traces"
        return "neighbours" if isinstance(self.corpus, FileCorpus) and self.corpus.neighbours else None

    @property
    def retrainable(self) -> bool:
        """Whether models can be retrained without some of the scored documents."""
        first = min(self.stage_names.index(name) for name in self.attributed)
        return not self.candidates and all(stage.training for stage in self.stages[first:])

    def stage(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)
