"""Apply a chain's inverses to some of the query gradients by solving with the exact curvature."""

from forebear.runtime.job import measured, start

start(snakemake)

import json

from forebear.artifacts.manifests import point_digests
from forebear.factors.gauss_newton import GaussNewton
from forebear.gradients.point import open_point
from forebear.models.checkpoints import warn_of_size
from forebear.queries.chain import apply_chain
from forebear.queries.files import create_query_columns, origin_of, read_query_columns, solves_of
from forebear.queries.open_chain import open_inverse
from forebear.queries.solve import SolvedInverse, SolverOptions, choose_queries, choose_sequences

params, files = snakemake.params, snakemake.input
warn_of_size("solutions", files.last, snakemake.resources.mem_mb, params.loading)
options = SolverOptions(**params.solvers)
queries = read_query_columns(files.gradients, point_digests(files.last, files.queries))
chosen = queries.at(choose_queries(len(queries.losses), options.queries).numpy())
path = snakemake.output.columns
origin = origin_of(params, [files.gradients, *files.manifests, *files.records, *files.eigenbasis, *files.eigenvalues])

inverses = []
for link, *sources in zip(
    params.links, files.manifests, files.records, files.eigenbasis, files.eigenvalues, strict=True
):
    point = open_point(*sources[:2], **params.loading)
    examples = choose_sequences(point.examples, options.sequences, params.seed)
    operator = GaussNewton(point.model, point.blocks, examples, params.batch_tokens)
    ekfac = open_inverse(link, *sources, point.blocks)
    inverses.append(SolvedInverse(operator, ekfac, params.solver, options, params.seed))

sequences = {inverse.name: len(inverse.gauss_newton.examples) for inverse in inverses}
attributes = {**queries.attributes, "columns": params.columns, "sequences": json.dumps(sequences), "origin": origin}
with create_query_columns(path, chosen.losses, queries.blocks, attributes, chosen.keys) as file:
    new = chosen.at(file.missing)

    def report(point, taken):
        for kind, values in taken.items():
            file.write_part(kind, point, file.missing, values)

    with measured() as cost:
        if len(new.losses):
            for block, columns in apply_chain(new.of(new.blocks), new.blocks, inverses, report).items():
                file.write(block, file.missing, columns)
    file.note(cost)
print("\n".join(map(json.dumps, solves_of(path))))
