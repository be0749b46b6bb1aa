"""What a file depends on, as one digest: config keys, code, data, versions, and all of that again for what it is made from.

A rule's own params tell Snakemake of an edit that reaches the rule itself. Its recipe tells of every
edit above it too, so that a file says by itself that it is of another config, also where the job
between the two failed and Snakemake has taken note of the edit there.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from forebear.artifacts.digests import file_digest
from forebear.runtime.atomic import atomic_path


def recipe_digest(own: Mapping, inputs: Iterable[str], versions: Mapping[str, str]) -> str:
    """The recipe of a job's files.

    Args:
        own: the job's params.
        inputs: of every input file its recipe or, for one that nobody makes, the digest of its content.
        versions: of the libraries that make numbers.
    """
    content = json.dumps([own, list(inputs), versions], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


class Contents:
    """Digests of files and folders by content, kept in a file with what tells that they have not changed.

    A file whose size, inode, time of change and time of its inode's change are those of the last
    time is not read again, so that a large corpus is read once.
    """

    def __init__(self, memory: Path):
        self._memory = memory
        try:
            self._known: dict[str, list] = json.loads(memory.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self._known = {}
        self._changed = False

    def digest(self, path: str | Path) -> str:
        """SHA-256 of a file, or of the names and contents of all files below a folder."""
        path = Path(path)
        if not path.is_dir():
            return self._of_file(path)
        below = sorted(
            file for folder, _, names in os.walk(path) for name in names if (file := Path(folder, name)).is_file()
        )
        parts = [f"{file.relative_to(path)} {self._of_file(file)}" for file in below]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def _of_file(self, path: Path) -> str:
        found = path.stat()
        signature = [found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns]
        name = os.path.abspath(path)
        known = self._known.get(name)
        if known is None or known[:-1] != signature:
            self._known[name] = known = [*signature, file_digest(path)]
            self._changed = True
        return known[-1]

    def save(self) -> None:
        """Keep what was read, for the next run."""
        if self._changed and self._memory.parent.is_dir():
            with atomic_path(self._memory) as temporary:
                temporary.write_text(json.dumps(self._known), encoding="utf-8")
            self._changed = False
