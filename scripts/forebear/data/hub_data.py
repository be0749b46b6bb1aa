"""Rows of a data set on the Hugging Face hub, streamed through the library `datasets`.

Nothing but the rows that are wanted is fetched, and no code of the data set is run.
"""

from collections.abc import Iterator

from forebear.data.tables import BATCH, EVERY, Columns, chosen_split, datasets_library, rows_of
from forebear.data.text_files import Row
from forebear.errors import ForebearError
from forebear.runtime.hub_errors import explained_fetch


def hub_rows(
    hub: str,
    revision: str,
    name: str | None = None,
    split: str | None = None,
    columns: Columns = EVERY,
    limit: int | None = None,
) -> Iterator[Row]:
    """Each row of a data set on the hub, as it arrives.

    Args:
        hub: its name there, such as org/name.
        revision: commit or tag.
        name: of one of its subsets.
        split: which of several.
        limit: how many rows are wanted, so that no others are waited for; there may come more.

    Raises:
        ForebearError: the data set is missing or gated; there is no such revision, subset, split
            or column, and which there are; or the network is away.
    """
    datasets = datasets_library(hub, "data sets of the hub")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from pyarrow import ArrowException

    where = f"{hub} at {revision}"
    with explained_fetch(hub, revision, "data set", "give a file of it as `path`"):
        # First, and by its commit from here on: where the hub refuses, `datasets` would
        # take whatever revision its cache has.
        commit = HfApi().dataset_info(hub, revision=revision).sha
        try:
            split, rows = _stream(datasets, hub, commit, name, split, where)
            wanted = columns.among(_column_names(rows), where)
            if rows.features:  # the other columns of Parquet are then not even fetched
                rows = rows.select_columns(wanted)
            tables = rows.with_format("arrow").iter(min(BATCH, limit or BATCH))
            yield from rows_of(tables, rows.features or {}, f"{where}, split {split}")
        except (ArrowException, datasets.exceptions.DatasetsError, ValueError, TypeError, KeyError) as error:
            if isinstance(error.__cause__, HfHubHTTPError):
                raise error.__cause__ from error
            reason = str(error).partition("\n")[0]
            raise ForebearError(
                f"{where}: the data set cannot be read ({reason}); give a file of it as `path`."
            ) from error


def _stream(datasets, hub: str, commit: str, name: str | None, split: str | None, where: str) -> tuple:
    """The name of a split, and its rows as an IterableDataset."""
    # The address, and not the name alone: a folder of that name here is another data set.
    path, options = f"hf://datasets/{hub}", {"revision": commit}
    subsets = datasets.get_dataset_config_names(path, **options)
    if name is None and len(subsets) > 1 and "default" not in subsets:
        raise ForebearError(f"{where}: has several subsets; set `name` to one of {', '.join(subsets)}.")
    if name not in (None, *subsets):
        raise ForebearError(f"{where}: has no subset {name!r}; `name` must be one of {', '.join(subsets)}.")
    builder = datasets.load_dataset_builder(path, name, **options)
    splits = builder.as_streaming_dataset()
    split = chosen_split(split, list(splits), where)
    rows = splits[split]
    if type(builder.config).__name__ == "CsvConfig":  # cells as they stand there: None and NA are texts too
        texts = datasets.Features(dict.fromkeys(_column_names(rows), datasets.Value("string")))
        builder = datasets.load_dataset_builder(path, name, features=texts, na_filter=False, **options)
        rows = builder.as_streaming_dataset(split)
    return split, rows


def _column_names(rows) -> list[str]:
    """Those of the first row where nothing else says which there are."""
    return list(rows.features or next(iter(rows), {}))
