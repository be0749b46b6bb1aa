"""The config's `corpus` section: where a study's documents and queries come from."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


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
    """Passages of State of the Union addresses, and their eras."""

    embedded: Literal["speeches"]
    """Name of an embedded corpus."""
    passages: int = Field(300, ge=1, le=5843)
    """How many passages of State of the Union addresses are in the corpus, those of the plainest words."""
    query_passages: int = Field(100, ge=1)
    """How many of them the queries are excerpts of; fine-tuning sees excerpts of the others."""
    excerpt: float = Field(0.8, gt=0, le=1)
    """Fraction of a passage's words in its excerpt."""

    @model_validator(mode="after")
    def _some_left(self):
        if self.query_passages >= self.passages:
            raise ValueError("`query_passages` must be smaller than `passages`, or nothing is left to fine-tune on")
        return self

    @property
    def stages(self) -> tuple[str, ...]:
        return ("pretraining", "finetuning")


class FileCorpus(Section):
    """JSONL files of your own."""

    documents: dict[str, Path]
    """For each stage, a file of {"text"}, {"prompt", "completion"} or {"text", "label"} lines."""
    queries: Path
    """A file of {"prompt", "completion"} or {"text", "label"} lines, optionally with `relevant` and `group`."""

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(self.documents)


EMBEDDED = {"facts": FactsCorpus, "midtraining": MidtrainingCorpus, "speeches": SpeechesCorpus}

Corpus = FactsCorpus | MidtrainingCorpus | SpeechesCorpus | FileCorpus
