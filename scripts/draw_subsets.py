"""Draw the random subsets of the attributed documents that models are retrained on."""

from forebear.jobs import start

start(snakemake.log[0], snakemake.threads)

from forebear.bank import draw_subsets, write_subsets
from forebear.datasets import file_digest, read_records

params = snakemake.params
documents = len(read_records(snakemake.input.records))
masks = draw_subsets(documents, params.fraction, params.subsets, params.seed)
attributes = {"study": params.study, "seed": params.seed, "data_digest": file_digest(snakemake.input.records)}
write_subsets(snakemake.output.subsets, masks, attributes)
