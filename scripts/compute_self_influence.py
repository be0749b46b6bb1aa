"""The documents' self-influence under their own stage's curvature."""

from forebear.devices import lease_devices
from forebear.jobs import measured, start

start(snakemake.log[0], snakemake.threads)
lease_devices(snakemake.params.gpus)

from forebear.links import open_link
from forebear.points import open_point
from forebear.score_files import write_self_influence
from forebear.self_influence import self_influence

params, files = snakemake.params, snakemake.input
point = open_point(
    files.manifest, files.records, params.max_length, params.gpus, params.split_heads, precision=params.precision
)
curvature, _ = open_link(params.link, files.manifest, files.fitted, files.eigenbasis, files.eigenvalues, point.blocks)
with measured() as cost:
    values = self_influence(point.model, point.blocks, point.examples, curvature, params.batch_tokens)
write_self_influence(snakemake.output.values, values.numpy(), {"study": params.study, **point.attributes, **cost})
