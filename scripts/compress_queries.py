"""Preconditioned queries of low rank, in the metric of the documents' gradients."""

from forebear.runtime.job import measured, start

start(snakemake)

import torch

from forebear.artifacts.manifests import point_digests
from forebear.factors.files import stored_eigenbasis
from forebear.planning.budget import budget_of
from forebear.planning.plan import split_preconditioning
from forebear.queries.compression import Metric, compress, relative_residual
from forebear.queries.files import create_query_columns, origin_of, read_query_columns
from forebear.runtime.devices import device_for

params, files = snakemake.params, snakemake.input
queries = read_query_columns(files.columns, point_digests(files.last, files.queries))
basis = stored_eigenbasis(files.eigenbasis, {**point_digests(files.manifest, files.records), "seed": params.seed})
device = device_for(params.gpus)
room = budget_of(0, snakemake.resources.mem_mb, params.gpus).room  # preconditioning holds no less

attributes = {**queries.attributes, "rank": params.rank, "origin": origin_of(params, [files.columns, files.eigenbasis])}
path, keys = snakemake.output.columns, queries.keys
with create_query_columns(path, queries.losses, queries.blocks, attributes, keys) as file:
    new = queries.at(file.missing)
    lost, whole = torch.zeros(2, len(new.losses))
    with measured() as cost:
        for part in split_preconditioning(new.blocks, len(new.losses), room) if len(new.losses) else ():
            rows = file.missing[part.queries]
            for block in part.blocks:
                matrices = new.of([block], part.queries)[block.name].to(device)
                found = compress(matrices, Metric.of(block, basis).to(device), params.rank)
                file.write_part("left", block.name, rows, found.products.left)
                file.write_part("right", block.name, rows, found.products.right)
                file.write_part("residuals", block.name, rows, relative_residual(found.lost, found.whole))
                lost[part.queries] += found.lost.cpu()
                whole[part.queries] += found.whole.cpu()
    file.write_rows("residuals", file.missing, relative_residual(lost, whole))
    residuals = file.read_rows("residuals")
    file.note({"residual": residuals.median().item(), "largest_residual": residuals.max().item(), **cost})
print(f"rank {params.rank}: residual {residuals.median():.3f} of the median query, {residuals.max():.3f} of the worst")
