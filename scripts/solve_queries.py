"""Apply a chain's inverses to some of the query gradients by solving with the exact curvature."""

from forebear.runtime.job import measured, start

start(snakemake)

import json

from forebear.artifacts.manifests import point_digests
from forebear.factors.gauss_newton import GaussNewton
from forebear.gradients.outer_products import formed
from forebear.gradients.point import open_point
from forebear.queries.files import create_query_columns, origin_of, read_query_columns, solves_of
from forebear.queries.open_chain import open_link
from forebear.queries.solve import Link, SolverOptions, choose_queries, choose_sequences, solve_chain

params, files = snakemake.params, snakemake.input
options = SolverOptions(**params.solvers)
queries = read_query_columns(files.gradients, point_digests(files.last, files.queries))
chosen = queries.at(choose_queries(len(queries.losses), options.queries).numpy())
path = snakemake.output.columns
origin = origin_of(params, [files.gradients, *files.manifests, *files.records, *files.eigenbasis, *files.eigenvalues])

links = []
for link, *sources in zip(
    params.links, files.manifests, files.records, files.eigenbasis, files.eigenvalues, strict=True
):
    point = open_point(
        *sources[:2],
        **params.loading,
    )
    curvature, scale = open_link(link, *sources, point.blocks)
    examples = choose_sequences(point.examples, options.sequences, params.seed)
    operator = GaussNewton(point.model, point.blocks, examples, params.batch_tokens)
    links.append(Link(link["point"], operator, curvature, scale))

sequences = {link.name: len(link.gauss_newton.examples) for link in links}
attributes = {**queries.attributes, "columns": params.columns, "sequences": json.dumps(sequences), "origin": origin}
with create_query_columns(path, chosen.losses, queries.blocks, attributes, chosen.keys) as file:
    new = chosen.at(file.missing)
    with measured() as cost:
        if len(new.losses):
            gradients = {block: formed(part) for block, part in new.of(new.blocks).items()}
            columns, solutions = solve_chain(gradients, new.blocks, links, params.solver, options, params.seed)
            for block, solved in columns.items():
                file.write(block, file.missing, solved)
            for link, solution in zip(links, solutions, strict=True):
                file.write_part("iterations", link.name, file.missing, solution.iterations)
                file.write_part("residuals", link.name, file.missing, solution.residuals)
    file.note(cost)
print("\n".join(map(json.dumps, solves_of(path))))
