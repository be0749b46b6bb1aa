"""Facts of LAMA, the sentences of T-REx that state them, and which of those are ranked.

The original files: LAMA's T-REx part has a file of facts per relation (`P19.jsonl`) and
`relations.jsonl` with templates such as "[X] was born in [Y] ."; T-REx has files of
abstracts (`re-nlg_0-10000.json`) whose triples name the sentence that they stand in.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from forebear.data.text_rankers import bm25_index, bm25_scores
from forebear.errors import ForebearError

Fact = tuple[str, str, str]  # Wikidata's names of relation, subject and object


@dataclass(frozen=True)
class Counts:
    """How many facts are asked about, and which sentences every ranker sees for each.

    Bao et al. 2025 (in their published code): 200 facts, 200 random sentences that are the
    same for all, 100 that BM25 finds, and 100 about the same object.
    """

    queries: int = 200
    random: int = 200
    bm25: int = 100
    same_object: int = 100


def read_facts(folder: str | Path, templates: str | Path) -> list[dict]:
    """LAMA's facts as queries: `fact`, `prompt`, `completion`, and the relation as `group`.

    A template is cut before the object; a relation may have a `question` instead. Relations
    without either are left out.
    """
    prompts = {
        line["relation"]: line.get("question") or line["template"].partition("[Y]")[0] for line in _lines(templates)
    }
    facts = []
    for path in _files(folder, "*.jsonl"):
        for line in _lines(path):
            relation, subject = line["predicate_id"], line["sub_label"].strip()
            if "[X]" in prompts.get(relation, ""):
                facts.append(
                    {
                        "id": f"{relation}-{line['sub_uri']}-{line['obj_uri']}",
                        "fact": (relation, line["sub_uri"], line["obj_uri"]),
                        "prompt": prompts[relation].replace("[X]", subject).strip(),
                        "completion": f" {line['obj_label'].strip()}",
                        "group": relation,
                    }
                )
    return list({fact["id"]: fact for fact in facts}.values())


def read_sentences(folder: str | Path, wanted: set[Fact]) -> list[dict]:
    """The sentences of T-REx that state a wanted fact: `id`, `text`, and all their `facts`."""
    sentences = []
    for path in _files(folder, "*.json"):
        for number, abstract in enumerate(json.loads(path.read_text(encoding="utf-8"))):
            stated: dict[int, list[Fact]] = {}
            for triple in abstract["triples"]:
                uris = [triple[part]["uri"] for part in ("predicate", "subject", "object")]
                fact = tuple(uri.rpartition("/")[2] for uri in uris)
                if triple.get("sentence_id") is not None and all("wikidata.org/" in uri for uri in uris):
                    stated.setdefault(triple["sentence_id"], []).append(fact)
            for index, facts in sorted(stated.items()):
                if wanted.intersection(facts):
                    start, end = abstract["sentences_boundaries"][index]
                    name = f"{abstract.get('docid', number)}#{index}"
                    sentences.append({"id": f"{path.stem}:{name}", "text": abstract["text"][start:end], "facts": facts})
    return sentences


def choose_candidates(
    facts: Sequence[dict], sentences: Sequence[dict], counts: Counts, seed: int
) -> tuple[list[dict], list[dict]]:
    """Queries with their `relevant` and `candidates`, and the sentences that are a candidate of any.

    The candidates of a query are the sentences that state its fact, those that BM25 finds for
    prompt and object, some about the same object, and random ones shared by all queries.

    Raises:
        ForebearError: no sentence states any of the facts.
    """
    generator = np.random.default_rng([seed, 11])
    stating, about = _index(sentences)
    answerable = [fact for fact in facts if tuple(fact["fact"]) in stating]
    if not answerable:
        raise ForebearError("T-REx and LAMA have no fact in common; check `trex` and `lama` in `corpus`.")
    asked = [answerable[i] for i in _draw(generator, len(answerable), counts.queries)]
    shared = _draw(generator, len(sentences), counts.random)
    index = bm25_index(sentences)
    queries, everything = [], set()
    for fact in asked:
        truths, neighbours = stating[fact["fact"]], about[fact["fact"][2]]
        found = np.argsort(-bm25_scores(index, [fact])[:, 0], kind="stable")[: counts.bm25].tolist()
        same = [neighbours[i] for i in _draw(generator, len(neighbours), counts.same_object)]
        candidates = sorted({*truths, *found, *same, *shared})
        everything.update(candidates)
        names = {
            "relevant": [sentences[i]["id"] for i in truths],
            "candidates": [sentences[i]["id"] for i in candidates],
        }
        queries.append({key: value for key, value in fact.items() if key != "fact"} | names)
    return queries, [{key: sentences[i][key] for key in ("id", "text")} for i in sorted(everything)]


def _index(sentences: Sequence[dict]) -> tuple[dict[Fact, list[int]], dict[str, list[int]]]:
    """Fact → sentences that state it, and object → sentences that state something of it."""
    stating: dict[Fact, list[int]] = {}
    about: dict[str, list[int]] = {}
    for number, sentence in enumerate(sentences):
        for fact in dict.fromkeys(sentence["facts"]):
            stating.setdefault(fact, []).append(number)
        for name in dict.fromkeys(fact[2] for fact in sentence["facts"]):
            about.setdefault(name, []).append(number)
    return stating, about


def _draw(generator: np.random.Generator, total: int, wanted: int) -> list[int]:
    """At most `wanted` of `total` indices, none twice, in order."""
    return sorted(generator.choice(total, min(total, wanted), replace=False).tolist())


def _files(folder: str | Path, pattern: str) -> list[Path]:
    files = sorted(Path(folder).glob(pattern))
    if not files:
        raise ForebearError(f"{folder}: has no {pattern} files; check `corpus` in the config.")
    return files


def _lines(path: str | Path) -> Iterator[dict]:
    with Path(path).open(encoding="utf-8") as handle:
        for number, line in enumerate(handle, start=1):
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ForebearError(f"{path}, line {number}: not valid JSON ({error.msg}).") from error
