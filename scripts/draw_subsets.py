"""Draw the random subsets of the attributed documents that models are retrained on."""

from forebear.jobs import start

start(snakemake)

from forebear.bank import draw_subsets, write_subsets
from forebear.records import Records, collection_digest

params = snakemake.params
files = zip(params.stages, snakemake.input.records, strict=True)
documents = {stage: len(Records(file)) for stage, file in files}
masks = draw_subsets(documents, params.fraction, params.subsets, params.seed)
attributes = {"study": params.study, "seed": params.seed, "data_digest": collection_digest(snakemake.input.records)}
write_subsets(snakemake.output.subsets, masks, attributes)
