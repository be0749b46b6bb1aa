"""Which other processes keep a file locked, where the system tells."""

import os
from contextlib import suppress
from pathlib import Path

LONGEST = 100  # characters of a command line in a sentence


def holders(path: str | Path) -> list[str]:
    """Process numbers and command lines of those that hold a lock on a file, as Linux lists them.

    Empty on other systems, where the file lies on another machine's disk and is locked from there, and on
    file systems that number their devices otherwise.
    """
    held: dict[int, str] = {}
    with suppress(OSError, ValueError):
        found = os.stat(path)
        device, inode = (os.major(found.st_dev), os.minor(found.st_dev)), found.st_ino
        for line in Path("/proc/locks").read_text().splitlines():
            # 1: FLOCK ADVISORY WRITE 4493 fe:00:2327173 0 EOF; one that waits has an arrow before FLOCK
            *_, process, place, _, _ = line.split()
            major, minor, number = place.split(":")
            if (int(major, 16), int(minor, 16)) == device and int(number) == inode and "->" not in line:
                held[int(process)] = _command(int(process))
    return [f"process {process}{command}" for process, command in held.items()]


def _command(process: int) -> str:
    """The command line of a process, in brackets; nothing where it is not to be seen."""
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return ""
    line = " ".join(" ".join(words).split())
    return f" ({line if len(line) <= LONGEST else line[: LONGEST - 1] + '…'})" if line else ""
