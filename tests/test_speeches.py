"""The embedded prose and the corpora made of it."""

from forebear.speeches import read_passages


def test_passages_are_prose_with_their_speaker():
    passages = read_passages()
    assert len(passages) == len({passage["id"] for passage in passages}) == 5843
    assert all(15 <= len(passage["text"].split()) <= 45 for passage in passages)
    assert all(passage["president"] and passage["party"] for passage in passages)
    years = [passage["year"] for passage in passages]
    assert years == sorted(years)
    assert (years[0], years[-1]) == (1790, 2026)
