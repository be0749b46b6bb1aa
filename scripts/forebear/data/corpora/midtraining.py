"""The embedded corpus `midtraining`: general prose, then facts, then questions on them.

The prose is passages of speeches and WordNet's definitions of countries and capitals; some
of these state a fact that the statements of the second stage state too. So documents of two
stages speak for one answer, and a score must compare them.
"""

import random

from forebear.data.corpora.facts import build_facts
from forebear.data.corpora.speeches import plainest, read_passages


def build_midtraining(
    countries: int = 80, query_countries: int = 30, glosses: bool = True, passages: int = 300, seed: int = 0
) -> dict[str, list[dict]]:
    """The corpus as plain records: `pretraining`, `midtraining`, `finetuning` and `queries`.

    Args:
        countries: how many countries, the most populous first (at most 120).
        query_countries: how many of them only the queries ask about.
        glosses: add the definitions of countries and capitals to the prose.
        passages: how many passages of speeches are in the prose, those of the plainest words.
        seed: which countries are the queries', and the order of the documents.
    """
    facts = build_facts(countries, query_countries, glosses, seed)
    definitions = [document for document in facts["pretraining"] if "/wordnet-" in document["id"]]
    speeches = [{"id": p["id"], "text": p["text"]} for p in plainest(read_passages(), passages)]
    prose = speeches + definitions
    random.Random(seed).shuffle(prose)
    statements = [document for document in facts["pretraining"] if "/wordnet-" not in document["id"]]
    return {**facts, "pretraining": prose, "midtraining": statements}
