"""Apply a chain's inverses, or SOURCE's functions, to the query gradients."""

from forebear.runtime.job import measured, start

start(snakemake)

from itertools import zip_longest

from forebear.artifacts.manifests import point_digests
from forebear.planning.budget import budget_of
from forebear.planning.plan import split_preconditioning
from forebear.queries.chain import precondition_chain, unroll_chain
from forebear.queries.files import create_query_columns, origin_of, read_query_columns
from forebear.queries.open_chain import open_link, open_segment
from forebear.runtime.devices import device_for

params, files = snakemake.params, snakemake.input
queries = read_query_columns(files.gradients, point_digests(files.last, files.queries))
# K-FAC reads no eigenvalues, so that the last list may be empty.
parts = zip_longest(params.links, files.manifests, files.records, files.eigenbasis, files.eigenvalues)
if params.unrolled:
    apply, links = unroll_chain, [open_segment(*part, params.unrolled == "adam") for part in parts]
else:
    apply, links = precondition_chain, [open_link(*part, queries.blocks, stored=True) for part in parts]

path = snakemake.output.columns
origin = origin_of(params, [files.gradients, *files.manifests, *files.records, *files.eigenbasis, *files.eigenvalues])
room = budget_of(0, snakemake.resources.mem_mb, params.gpus).room
attributes = {**queries.attributes, "columns": params.columns, "origin": origin}
with create_query_columns(path, queries.losses, queries.blocks, attributes, queries.keys) as file:
    new = queries.at(file.missing)
    with measured() as cost:
        for part in split_preconditioning(new.blocks, len(new.losses), room) if len(new.losses) else ():
            gradients = new.of(part.blocks, part.queries)
            for block, columns in apply(gradients, part.blocks, links, device_for(params.gpus)).items():
                file.write(block, file.missing[part.queries], columns)
    file.note(cost)
