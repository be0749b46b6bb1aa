"""A config is filled with defaults, and a mistake in it is one sentence that names the key."""

import copy
import re

import pytest
import yaml

from copies import ROOT
from forebear.config.reading import parse_config, read_config
from forebear.errors import ForebearError

TINY = yaml.safe_load((ROOT / "tests/tiny.yaml").read_text())


def changed(path: str, value: object) -> dict:
    """The tiny config with the value at a dotted path replaced, or removed if it is None."""
    config = copy.deepcopy(TINY)
    *parents, last = path.split(".")
    place = config
    for part in parents:
        place = place[int(part)] if isinstance(place, list) else place[part]
    last = int(last) if isinstance(place, list) else last
    if value is None:
        del place[last]
    else:
        place[last] = value
    return config


def test_the_default_config_is_valid_and_attributes_the_first_stage():
    study = read_config(ROOT / "config.yaml").studies["facts"]
    assert study.attributed == ["pretraining"]
    assert study.stage("pretraining").damping.relative == 1e-3


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_study_of_the_folder_is_valid_and_runs_by_its_name(path):
    assert list(read_config(path).studies) == [read_config(path).study] == [path.stem]


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("studies.tiny.estimaters", ["bm25"], "unknown key `studies.tiny.estimaters`"),
        ("studies.tiny.estimators", ["bm26"], "no estimator 'bm26'"),
        ("studies.tiny.stages", [], "`studies.tiny.stages` is empty"),
        ("studies.tiny.stages", None, "`studies.tiny.stages` is missing"),
        ("studies.tiny.stages.0.name", "midtraining", "no documents for the stage 'midtraining'"),
        ("studies.tiny.stages.1.damping", -1, "stages.1.damping.relative"),
        ("studies.tiny.stages.1.damping", {"relative": 1, "absolute": 1}, "either `relative` or `absolute`"),
        ("studies.tiny.attributed_stages", ["pretrainin"], "'pretrainin', which is none of the stages"),
        ("studies.tiny.stages.1.alpha", 0, "must be positive"),
        ("studies.tiny.ensemble", {"members": 4}, "`ensemble.members` cannot exceed `ground_truth.repeats`"),
        ("studies.tiny.corpus.countrys", 3, "unknown key `studies.tiny.corpus.countrys`"),
        ("studies.tiny.corpus.query_countries", 8, "must be smaller than `countries`"),
        ("studies.tiny.ground_truth.repeats", 5, "`repeats` cannot exceed `subsets`"),
        ("studies.tiny.stages.0.task", "classification", "language modelling cannot follow"),
        ("studies.tiny.stages.1.task", "clasification", "stages.1.task"),
        ("studies.tiny.stages.0.training", None, "either `training` or `checkpoint`"),
        ("studies.tiny.stages.1.checkpoint", "folder", "either `training` or `checkpoint`"),
        ("studies.tiny.stages.0", {"name": "pretraining", "checkpoint": "folder", "damping": 1}, "give `model` if"),
        ("studies.tiny.stages.1", {"name": "finetuning", "checkpoint": "folder", "damping": 1}, "no training record"),
        ("studies.tiny.stages.0.checkpoint", {"hub": "org/model"}, "need a `revision`"),
        ("studies.tiny.stages.0.checkpoint", {"package": "some-llm"}, "need a `revision`"),
        ("studies.tiny.stages.0.checkpoint", {"path": "folder", "revision": "v1"}, "`path` has none"),
        (
            "studies.tiny.stages.0.checkpoint",
            {"hub": "org/model", "package": "some-llm", "revision": "v1"},
            "give one of",
        ),
        ("studies.tiny.model", None, "give `model` if"),
        ("studies.tiny.trak.members", 4, "cannot exceed `ground_truth.repeats`"),
        ("study", "factz", "names 'factz'"),
    ],
)
def test_a_mistake_is_one_sentence(path: str, value: object, words: str):
    with pytest.raises(ForebearError) as caught:
        parse_config(changed(path, value))
    message = str(caught.value)
    assert words in message
    assert "\n" not in message


def test_an_address_with_a_token_is_refused_and_not_repeated():
    address = {"hub": "https://me:hunter2@hub.example/org/model", "revision": "v1"}
    with pytest.raises(ForebearError) as caught:
        parse_config(changed("studies.tiny.stages.0.checkpoint", address))
    assert "checkpoint.hub`: must be a name such as" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_what_needs_the_documents_at_the_last_model_is_undefined_when_the_head_was_replaced():
    study = parse_config(changed("studies.tiny.stages.1.task", "classification")).studies["tiny"]
    assert study.undefined == dict.fromkeys(["singlestage-ekfac", "trak"], "the head was replaced")
    assert set(study.computed) == set(study.estimators) - set(study.undefined)
    assert parse_config(TINY).studies["tiny"].undefined == {}


def test_what_needs_a_training_recipe_is_undefined_for_published_models():
    published = {"name": "finetuning", "checkpoint": "folder", "damping": 1, "alpha": 1.0}
    study = parse_config(changed("studies.tiny.stages.1", published)).studies["tiny"]
    names = ["multistage-ensemble", "multistage-source", "multistage-source-adam", "trak"]
    assert study.undefined == dict.fromkeys(names, "no training recipe")


def test_shown_scores_are_of_whole_queries():
    with pytest.raises(ForebearError, match="cannot be less than `top`"):
        parse_config(changed("studies.tiny.compression", {"rank": 4, "rescore": 4}))
    assert parse_config(changed("studies.tiny.compression", {"rank": 4, "rescore": 5})).studies["tiny"].top == 5
    assert parse_config(TINY).studies["tiny"].compression.rank is None


def test_attributed_stages_come_in_the_order_of_the_chain():
    config = changed("studies.tiny.attributed_stages", ["finetuning", "pretraining"])
    assert parse_config(config).studies["tiny"].attributed == ["pretraining", "finetuning"]


def test_the_reference_page_is_that_of_the_schema():
    from forebear.config.reading import reference

    assert reference() in (ROOT / "docs/config.md").read_text(encoding="utf-8")


CORPUS = {"documents": {"pretraining": "a.jsonl", "finetuning": "b.jsonl"}, "queries": "q.jsonl"}
HUB = {"hub": "org/data", "revision": "v1"}


@pytest.mark.parametrize(
    ("corpus", "words"),
    [
        ({**CORPUS, "queries": {"hub": "org/data"}}, "`hub` needs a `revision`"),
        ({**CORPUS, "queries": {"path": "a.jsonl", "revision": "v1"}}, "`path` has none"),
        ({**CORPUS, "queries": {**HUB, "path": "a.jsonl"}}, "give either `path` or `hub`"),
        ({**CORPUS, "queries": {"text": "column"}}, "give either `path` or `hub`"),
        ({**CORPUS, "queries": {"path": "a.jsonl", "name": "subset"}}, "`name` is for a data set on the hub"),
        ({**CORPUS, "queries": {**HUB, "hub": "https://somewhere/org/data"}}, "must be a name"),
        ({**CORPUS, "queries": {**HUB, "columns": {"text": "a"}}}, "unknown key"),
        ({**CORPUS, "queries": {**HUB, "limit": 0}}, "greater than or equal to 1"),
        ({**CORPUS, "documents": {**CORPUS["documents"], "finetuning": {**HUB, "limit": 3}}, "limit": {"finetuning": 2}},
         "has two limits"),
    ],
)  # fmt: skip
def test_a_wrong_source_is_one_sentence(corpus, words: str):
    with pytest.raises(ForebearError, match=re.escape(words)) as caught:
        parse_config(changed("studies.tiny.corpus", corpus))
    assert "\n" not in str(caught.value)


def test_a_plain_path_is_a_source_and_columns_are_those_that_are_named():
    corpus = {**CORPUS, "limit": {"pretraining": 5}, "queries": {**HUB, "prompt": "question", "split": "test"}}
    study = parse_config(changed("studies.tiny.corpus", corpus)).studies["tiny"]
    plain = study.corpus.documents["pretraining"].described(study.corpus.limit["pretraining"])
    nothing = dict.fromkeys(("path", "hub", "revision", "name", "split", "limit"))
    assert plain == {**nothing, "path": "a.jsonl", "limit": 5, "columns": {}}
    named = {**nothing, **HUB, "split": "test", "columns": {"prompt": "question"}}
    assert study.corpus.queries.described() == named
