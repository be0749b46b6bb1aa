"""The embedded prose: short passages of the State of the Union addresses, 1790 to 2026."""

import csv
from importlib.resources import files


def read_passages() -> list[dict]:
    """5,843 passages of 15 to 45 words, at most 25 an address, in order of time.

    Returns:
        Records with `id` (`{year}-{president's surname}-{address}/{passage}`), `text`,
        `year` (int), `president` and `party`.
    """
    with (files("forebear") / "data/speeches.csv").open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    counts: dict[str, int] = {}
    passages = []
    for row in rows:
        speech = row.pop("speech")
        counts[speech] = counts.get(speech, 0) + 1
        passages.append({"id": f"{speech}/{counts[speech]}", **row, "year": int(row["year"])})
    return passages
