# One recipe a file: each rule's params get a digest of everything that its files depend on, so that a
# file of another config, code or data is made again whatever became of the jobs between. No rule stands here.
import atexit
import os
from functools import cache
from pathlib import Path

from snakemake.iocontainers import Wildcards

from forebear.runtime.receipts import FOLDER, file_of, read_receipt, receipt_path
from forebear.workflow.recipes import Contents, recipe_digest
from forebear.runtime.versions import minor_versions

VERSIONS = minor_versions()  # asked for once: it takes 15 ms, and a study has many jobs
CONTENTS = Contents(Path(".snakemake/forebear-contents.json"))
atexit.register(CONTENTS.save)


@cache
def maker_of(path):
    """The rule that makes a file, also one of a workflow that imports this one, or None."""
    for maker in workflow.rules:
        if any(output.match(path) for output in maker.output):
            return maker


@cache
def recipe_of(path):
    """The recipe of a file that a rule makes, the digest of what people bring."""
    maker = maker_of(path)
    if maker and "recipe" in maker.params.keys():
        return recipe_of_job(maker, tuple(sorted(maker.get_wildcards(path).items())))
    if maker:  # another workflow's rule: what it depends on is that workflow's matter
        return f"made by {maker.name}"
    return CONTENTS.digest(path) if Path(path).exists() else "missing"


@cache
def recipe_of_job(maker, wildcards):
    """The recipe of all files that a rule makes with these wildcards."""
    given = Wildcards(fromdict=dict(wildcards))
    own = {
        name: value(given) if callable(value) else value
        for name, value in maker.params.items()
        if name not in ("recipe", "results")
    }
    files, *_ = maker.expand_input(dict(wildcards))
    recipes = [recipe_of(str(file)) for file in files]
    return recipe_digest({**own, "wildcards": wildcards}, recipes, VERSIONS)


def name_recipe(maker):
    maker.set_params(
        recipe=lambda wildcards: recipe_of_job(maker, tuple(sorted(wildcards.items()))),
        results=lambda wildcards: RESULTS,
    )


for maker in workflow.modifier.rules:  # not those of a workflow that imports this one
    name_recipe(maker)


def outdate(path):
    """Let Snakemake see that a file is of another recipe, also where its own records are gone or say otherwise.

    Such a file becomes older than all that it was made from, which may be outdated too, and gets its
    time back with its recipe. One whose receipt cannot be read is of an unknown recipe.
    """
    receipt = read_receipt(path, RESULTS) or {"recipe": None, "made_from": ()}
    try:
        current = receipt["recipe"] == recipe_of(str(path))
    except WorkflowError:  # nothing that this config can make
        return
    marked = os.lstat(path).st_mtime_ns < ORIGIN_TIME
    if current and marked:
        time = os.lstat(receipt_path(path, RESULTS)).st_mtime_ns  # it was left right after its file
    elif not current and not marked:
        time = ORIGIN_TIME - (1 + len(receipt["made_from"])) * 10**9
    else:
        return
    os.utime(path, ns=(time, time), follow_symlinks=False)  # in Snakemake's cache times stay


if workflow.is_main_process and os.access(
    next(p for p in (RESULTS, ".") if os.path.isdir(p)), os.W_OK
):
    os.makedirs(RESULTS, exist_ok=True)
    Path(ORIGIN).touch()
    os.utime(ORIGIN, ns=(ORIGIN_TIME, ORIGIN_TIME))
    for found in Path(RESULTS).glob(f"*/{FOLDER}/**/*.json"):
        file = file_of(found, RESULTS)
        if file.is_file() and maker_of(str(file)):
            outdate(file)
