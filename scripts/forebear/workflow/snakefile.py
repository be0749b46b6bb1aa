"""Where the workflow lies whose engine this is, for those that import it: `python -m forebear.workflow.snakefile`."""

import sys
from pathlib import Path

from forebear.errors import ForebearError


def snakefile() -> Path:
    """The path of the Snakefile beside this engine.

    Raises:
        ForebearError: only the engine was installed, from a wheel: rules and scripts are no part of it.
    """
    clone = Path(__file__).resolve().parents[3]
    path = clone / "Snakefile"
    if not (path.is_file() and (clone / "rules").is_dir()):
        raise ForebearError(
            f"{path}: there is no such file; what is installed here is the engine alone, and the workflow's rules and "
            "scripts are in a clone: git clone the repository, `pip install -e` it, and run this again."
        )
    return path


if __name__ == "__main__":
    try:
        print(snakefile())
    except ForebearError as error:
        sys.exit(f"error: {error}")
