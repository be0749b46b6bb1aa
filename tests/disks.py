"""Small file systems, to be filled up."""

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[bool]:
    """A file system of its own in a folder while the block runs; yields whether this user may mount one."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder]
    mounted = not subprocess.run(command, check=False, capture_output=True).returncode
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", folder], check=True)


@contextmanager
def kept_full(folder: Path) -> Iterator[None]:
    """Whatever becomes free on the folder's file system is taken, until the block ends."""
    filler, ended = folder / "filler", threading.Event()

    def fill() -> None:
        with filler.open("ab", buffering=0) as file:
            while not ended.wait(0.005):
                with suppress(OSError):
                    while True:
                        file.write(bytes(os.statvfs(folder).f_bsize))

    filling = threading.Thread(target=fill)
    filling.start()
    try:
        yield
    finally:
        ended.set()
        filling.join()
        filler.unlink()
