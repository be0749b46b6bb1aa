"""The pages: each says what it is for, the index leads to each, and links lead somewhere."""

import re
import tomllib
from pathlib import Path

import pytest

from copies import ROOT

PAGES = sorted((ROOT / "docs").glob("*.md"))
ALL = [
    *PAGES,
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *(ROOT / folder / "README.md" for folder in ("profiles", "tests/benchmarks", "results")),
]


def links(page: Path) -> list[str]:
    """What a page's links and pictures lead to, without addresses of other sites."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith("http")]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_begins_with_what_it_is_for(page: Path):
    title, empty, first, *_ = page.read_text(encoding="utf-8").splitlines()
    assert title.startswith("# ")
    assert not empty
    assert re.match(r"\w", first), first


def test_the_index_leads_to_every_page_once():
    index = ROOT / "docs/README.md"
    named = [link for link in links(index) if "/" not in link]
    assert sorted(named) == sorted(page.name for page in PAGES if page != index)
    assert "docs/README.md" in links(ROOT / "README.md")


@pytest.mark.parametrize("page", ALL, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(page: Path):
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_paths_that_pages_name_are_there():
    found = {
        (page.name, path)
        for page in ALL
        for path in re.findall(
            r"(?:^|[\s`(])((?:tests|scripts|rules|docs|studies|profiles|envs)/[\w/.]+\w)", page.read_text()
        )
    }
    assert len(found) > 40
    examples = re.compile(r"/X\b|mysite|count_words")
    assert {(page, path) for page, path in found if not (ROOT / path).exists() and not examples.search(path)} == set()


def test_the_changelog_has_the_version_of_the_package():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"`{version}`" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
