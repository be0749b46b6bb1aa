"""The embedded corpora by name: each is a function from its options to plain records."""

from forebear.data.corpora.facts import build_facts, build_written_facts
from forebear.data.corpora.midtraining import build_midtraining
from forebear.data.corpora.prose import build_prose
from forebear.data.corpora.speeches import build_speeches
from forebear.errors import ForebearError

BUILDERS = {
    "facts": build_facts,
    "written-facts": build_written_facts,
    "midtraining": build_midtraining,
    "speeches": build_speeches,
    "prose": build_prose,
}


def build_corpus(embedded: str, seed: int, **options) -> dict[str, list[dict]]:
    """Records of every stage, and of `queries`.

    Args:
        embedded: name of the corpus; `options` are the arguments of its builder.
    """
    if embedded not in BUILDERS:
        raise ForebearError(f"there is no embedded corpus {embedded!r}; choose from {', '.join(BUILDERS)}.")
    return BUILDERS[embedded](**options, seed=seed)
