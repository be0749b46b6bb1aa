"""Apply a chain's inverses, or SOURCE's functions, to the query gradients."""

from forebear.runtime.job import measured, start

start(snakemake)

from itertools import zip_longest

from forebear.artifacts.manifests import point_digests
from forebear.planning.budget import budget_of
from forebear.planning.plan import split_preconditioning
from forebear.queries.chain import apply_chain
from forebear.queries.files import create_query_columns, origin_of, read_query_columns
from forebear.queries.open_chain import open_inverse
from forebear.runtime.devices import device_for

params, files = snakemake.params, snakemake.input
queries, device = read_query_columns(files.gradients, point_digests(files.last, files.queries)), device_for(params.gpus)
# K-FAC reads no eigenvalues, so that the last list may be empty.
parts = zip_longest(params.links, files.manifests, files.records, files.eigenbasis, files.eigenvalues)
inverses = [open_inverse(*part, queries.blocks, params.unrolled, stored=True, device=device) for part in parts]

path = snakemake.output.columns
origin = origin_of(params, [files.gradients, *files.manifests, *files.records, *files.eigenbasis, *files.eigenvalues])
room = budget_of(0, snakemake.resources.mem_mb, params.gpus).room
attributes = {**queries.attributes, "columns": params.columns, "origin": origin}
with create_query_columns(path, queries.losses, queries.blocks, attributes, queries.keys) as file:
    new = queries.at(file.missing)
    with measured() as cost:
        for part in split_preconditioning(new.blocks, len(new.losses), room) if len(new.losses) else ():
            gradients = new.of(part.blocks, part.queries)
            for block, columns in apply_chain(gradients, part.blocks, inverses).items():
                file.write(block, file.missing[part.queries], columns)
    file.note(cost)
