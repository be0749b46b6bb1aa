"""Draw the random subsets of the attributed documents that models are retrained on."""

from forebear.runtime.job import start

start(snakemake)

from forebear.artifacts.digests import collection_digest
from forebear.data.records import Records
from forebear.ground_truth.bank import draw_subsets
from forebear.ground_truth.files import write_subsets

params = snakemake.params
files = zip(params.stages, snakemake.input.records, strict=True)
documents = {stage: len(Records(file)) for stage, file in files}
masks = draw_subsets(documents, params.fraction, params.subsets, params.seed)
attributes = {"study": params.study, "seed": params.seed, "data_digest": collection_digest(snakemake.input.records)}
write_subsets(snakemake.output.subsets, masks, attributes)
