"""Reading and checking a config file, and what each of its keys means.

`python -m forebear.config` prints the reference table of docs/config.md. The keys of a study
are in `study` and `corpus`.
"""

from collections.abc import Sequence
from pathlib import Path

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from forebear.config.corpus import EMBEDDED, Checkpoint, FileCorpus, Neighbours, Section, Source, TracingCorpus
from forebear.config.study import (
    Chat,
    Compression,
    Cost,
    Damping,
    Ensemble,
    GroundTruth,
    Name,
    Solvers,
    Stage,
    Study,
    Sweep,
    Training,
    Trak,
)
from forebear.errors import ForebearError
from forebear.runtime.redaction import redacted


class Config(Section):
    """The whole file."""

    study: str
    """The study that results/figures/ shows."""
    studies: dict[Name, Study] = Field(min_length=1)
    """All studies, by name."""

    @model_validator(mode="after")
    def _study_exists(self):
        if self.study not in self.studies:
            raise ValueError(f"`study` names {self.study!r}, but `studies` has {', '.join(self.studies)}")
        return self


def parse_config(config: dict) -> Config:
    """Validate a config and fill in its defaults.

    Raises:
        ForebearError: one sentence that names the first wrong key.
    """
    try:
        return Config.model_validate(config)
    except ValidationError as error:
        raise ForebearError(_sentence(error)) from error


def read_config(*paths: str | Path) -> Config:
    """The config of some files, each of which adds to those before it key by key, as Snakemake merges them.

    Raises:
        ForebearError: a file cannot be read, or a key is wrong.
    """
    merged: object = {}
    for path in paths:
        merged = _merged(merged, read_yaml(path))
    return parse_config(merged)


def _merged(first: object, second: object) -> object:
    if not (isinstance(first, dict) and isinstance(second, dict)):
        return second
    return first | {key: _merged(first.get(key), value) for key, value in second.items()}


class _Loader(yaml.SafeLoader):
    """Refuses a mapping in which a key stands twice: YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.value in lines:
                raise ForebearError(
                    f"{self.name}, line {line}: the key `{key.value}` was already given in line {lines[key.value]}; "
                    "remove one of them."
                )
            lines[key.value] = line
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> object:
    """What a YAML file holds; nothing is an empty mapping.

    Raises:
        ForebearError: it cannot be read, or a key stands twice.
    """
    try:
        with Path(path).open(encoding="utf-8") as handle:
            return _Loader(handle).get_single_data() or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ForebearError(f"{path}: cannot be read as a config ({error}); correct its name or its YAML.") from error


def merged_studies(paths: Sequence[str | Path]) -> list[str]:
    """A sentence for every study that stands in several config files: Snakemake merges these key by key."""
    files_of: dict[str, list[str]] = {}
    for path in paths:
        for name in read_yaml(path).get("studies") or {}:
            files_of.setdefault(name, []).append(str(path))
    return [
        f"The study {name} stands in {' and '.join(files)}: a key that the last of them leaves out is the earlier "
        f"one's, not the default; results/{name}/config.yaml shows what counts."
        for name, files in files_of.items()
        if len(files) > 1
    ]


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"]) or "the top level"
    if first["type"] == "extra_forbidden":
        return f"config: unknown key `{key}`; remove it or correct its spelling."
    if first["type"] == "missing":
        return f"config: the key `{key}` is missing."
    if first["type"] == "too_short":
        return f"config: `{key}` is empty; give it at least one entry."
    return f"config: `{key}`: {first['msg'].removeprefix('Value error, ')} (found {_short(first['input'])})."


def _short(value: object) -> str:
    text = redacted(repr(value))
    return text if len(text) <= 60 else text[:57] + "..."


def reference() -> str:
    """All keys as a Markdown table."""
    return "\n".join(["| key | meaning | default |", "| --- | --- | --- |", *dict.fromkeys(_rows(Config))])


def _rows(section: type[BaseModel], prefix: str = "") -> list[str]:
    rows = []
    for name, field in section.model_fields.items():
        nested = _NESTED.get((section, name), ())
        default = "required" if field.is_required() else "" if nested else f"`{field.default}`"
        rows.append(f"| `{prefix}{name}` | {field.description} | {default} |")
        for suffix, inner in nested:
            rows += _rows(inner, f"{prefix}{name}{suffix}.")
    return rows


# Keys that hold a section, or a collection of them.
_NESTED: dict[tuple[type[BaseModel], str], tuple[tuple[str, type[BaseModel]], ...]] = {
    (Config, "studies"): ((".*", Study),),
    (Study, "corpus"): (*(("", corpus) for corpus in EMBEDDED.values()), ("", FileCorpus), ("", TracingCorpus)),
    (FileCorpus, "documents"): ((".*", Source),),
    (FileCorpus, "neighbours"): (("", Neighbours),),
    (Neighbours, "encoder"): (("", Checkpoint),),
    (Study, "chat"): (("", Chat),),
    (Study, "stages"): (("[]", Stage),),
    (Study, "ground_truth"): (("", GroundTruth),),
    (Study, "ensemble"): (("", Ensemble),),
    (Study, "sweep"): (("", Sweep),),
    (Study, "trak"): (("", Trak),),
    (Study, "solvers"): (("", Solvers),),
    (Study, "compression"): (("", Compression),),
    (Study, "cost"): (("", Cost),),
    (Stage, "training"): (("", Training),),
    (Stage, "checkpoint"): (("", Checkpoint),),
    (Stage, "damping"): (("", Damping),),
}
