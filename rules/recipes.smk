# One recipe a file: each rule's params get a digest of everything that its files depend on, so that a
# file of another config, code or data is made again whatever became of the jobs between. No rule stands here.
import atexit
import os
import re
import sys
from functools import cache
from pathlib import Path

from snakemake.iocontainers import Wildcards

from forebear.receipts import FOLDER, file_of, read_receipt
from forebear.recipes import Contents, recipe_digest

CONTENTS = Contents(Path(".snakemake/forebear-contents.json"))
atexit.register(CONTENTS.save)


@cache
def maker_of(path):
    """The rule that makes a file, or None."""
    for maker in workflow.rules:
        if any(output.match(path) for output in maker.output):
            return maker


@cache
def recipe_of(path):
    """The recipe of a file that a rule makes, the digest of what people bring."""
    maker = maker_of(path)
    if maker:
        return recipe_of_job(maker, tuple(sorted(maker.get_wildcards(path).items())))
    return CONTENTS.digest(path) if Path(path).exists() else "missing"


@cache
def recipe_of_job(maker, wildcards):
    """The recipe of all files that a rule makes with these wildcards."""
    given = Wildcards(fromdict=dict(wildcards))
    own = {
        name: value(given) if callable(value) else value
        for name, value in maker.params.items()
        if name != "recipe"
    }
    files, *_ = maker.expand_input(dict(wildcards))
    return recipe_digest({**own, "wildcards": wildcards}, [recipe_of(str(file)) for file in files])


def name_recipe(maker):
    maker.set_params(
        recipe=lambda wildcards: recipe_of_job(maker, tuple(sorted(wildcards.items())))
    )


for maker in workflow.rules:
    name_recipe(maker)


# A time before any other; Snakemake takes 0 for none.
OUTDATED = 10**9

# Snakemake knows only after reading its rules that a run is a dry one.
DRY = any(re.fullmatch("--dry-?run|-[A-Za-z]*n[A-Za-z]*", argument) for argument in sys.argv)


def outdate(path, receipt):
    """Let Snakemake see that a file is of another recipe, also where its own records are gone or say otherwise.

    Such a file becomes older than all that it was made from, and gets its time back with its recipe.
    One that was made from no file would not be noticed so: it goes.
    """
    try:
        current = receipt["recipe"] == recipe_of(str(path))
        made_from, *_ = maker_of(str(path)).expand_input(
            maker_of(str(path)).get_wildcards(str(path))
        )
    except WorkflowError:  # nothing that this config can make
        return
    marked = os.lstat(path).st_mtime_ns == OUTDATED
    if current and marked:
        os.utime(path, ns=(receipt["mtime_ns"],) * 2)
    elif not current and made_from and not marked:
        os.utime(path, ns=(OUTDATED, OUTDATED))
    elif not current and not made_from and not DRY:
        path.unlink()


if workflow.is_main_process and os.access("results", os.W_OK):
    for found in Path("results").glob(f"*/{FOLDER}/**/*.json"):
        file = file_of(found)
        if file.is_file() and not file.is_symlink() and maker_of(str(file)):
            outdate(file, read_receipt(file))
