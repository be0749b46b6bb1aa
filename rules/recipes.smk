# One recipe a file: each rule's params get a digest of everything that its files depend on, so that a
# file of another config, code or data is made again whatever became of the jobs between. No rule stands here.
import atexit
import os
from functools import cache
from pathlib import Path

from snakemake.iocontainers import Wildcards

from forebear.artifacts.versions import library_versions
from forebear.runtime.receipts import FOLDER, file_of, read_receipt
from forebear.workflow.recipes import Contents, recipe_digest

CONTENTS = Contents(Path(".snakemake/forebear-contents.json"))
atexit.register(CONTENTS.save)
VERSIONS = library_versions()


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
    recipes = [recipe_of(str(file)) for file in files]
    return recipe_digest({**own, "wildcards": wildcards}, recipes, VERSIONS)


def name_recipe(maker):
    maker.set_params(
        recipe=lambda wildcards: recipe_of_job(maker, tuple(sorted(wildcards.items())))
    )


for maker in workflow.rules:
    name_recipe(maker)


def outdate(path, receipt):
    """Let Snakemake see that a file is of another recipe, also where its own records are gone or say otherwise.

    Such a file becomes older than all that it was made from, which may be outdated too, and gets its
    time back with its recipe.
    """
    try:
        current = receipt["recipe"] == recipe_of(str(path))
    except WorkflowError:  # nothing that this config can make
        return
    marked = os.lstat(path).st_mtime_ns < ORIGIN_TIME
    if current and marked:
        os.utime(path, ns=(receipt["mtime_ns"],) * 2)
    elif not current and not marked:
        os.utime(path, ns=(ORIGIN_TIME - (1 + len(receipt["made_from"])) * 10**9,) * 2)


if workflow.is_main_process and os.access(
    next(p for p in ("results", ".") if os.path.isdir(p)), os.W_OK
):
    os.makedirs("results", exist_ok=True)
    Path(ORIGIN).touch()
    os.utime(ORIGIN, ns=(ORIGIN_TIME, ORIGIN_TIME))
    for found in Path("results").glob(f"*/{FOLDER}/**/*.json"):
        file = file_of(found)
        if file.is_file() and not file.is_symlink() and maker_of(str(file)):
            outdate(file, read_receipt(file))
