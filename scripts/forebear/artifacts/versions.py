"""Versions of the libraries that make numbers."""

from importlib.metadata import PackageNotFoundError, version

# Libraries that make numbers; by major and minor version, as bug fixes should cost no retraining.
LIBRARIES = ("torch", "transformers", "tokenizers", "numpy", "scipy")


def library_versions() -> dict[str, str]:
    """Major and minor versions of LIBRARIES, as they are installed."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = ".".join(version(name).split(".")[:2])
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
