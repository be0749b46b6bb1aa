"""What the Hugging Face hub refuses, in sentences that a user can act on."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from forebear.errors import ForebearError


@contextmanager
def explained_fetch(name: str, revision: str, kind: str, otherwise: str) -> Iterator[None]:
    """Say in a sentence what the hub refuses.

    Args:
        kind: what is fetched: a model or a data set.
        otherwise: what a user can do who has no network.
    """
    try:
        yield
    except GatedRepoError as error:
        remedy = "accept its licence on its page and log in with `hf auth login`, or set HF_TOKEN"
        raise ForebearError(f"{name}: the {kind} is gated; {remedy}.") from error
    except RepositoryNotFoundError as error:
        raise ForebearError(
            f"{name}: the hub has no such {kind}, or it is private; correct `hub`, or log in with `hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise ForebearError(f"{name}: the {kind} has no revision {revision!r}; correct `revision`.") from error
    except HFValidationError as error:
        raise ForebearError(f"{name!r} is not a {kind}'s name on the hub, such as bigscience/bloom-560m.") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, HTTPError, OSError) as error:
        if _is_away(error):
            raise ForebearError(
                f"{name} at {revision}: not in the cache as a whole, and the hub cannot be reached or HF_HUB_OFFLINE "
                f"is set; run again with a network, or {otherwise}."
            ) from error
        reason = str(error).partition("\n")[0]
        again = "run again, the files that are whole are kept" if kind == "model" else "run again"
        raise ForebearError(f"{name} at {revision}: the download broke off ({reason}); {again}.") from error


def _is_away(error: Exception) -> bool:
    """Whether there is no network; of the library that connects, which has had several names, by its error's name."""
    refused = isinstance(error, HTTPError) and type(error).__name__ in ("ConnectError", "ConnectTimeout")
    return refused or isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled)
