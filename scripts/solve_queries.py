"""Apply a chain's inverses to some of the query gradients by solving with the exact curvature."""

from forebear.devices import lease_devices
from forebear.jobs import measured, start

start(snakemake.log[0], snakemake.threads)
lease_devices(snakemake.params.gpus)

import json

from forebear.gauss_newton import GaussNewton
from forebear.links import open_link
from forebear.manifests import point_digests
from forebear.outer import formed
from forebear.points import open_point
from forebear.query_files import create_query_columns, read_query_columns
from forebear.solved_chain import Link, SolverOptions, choose_queries, choose_sequences, solve_chain

params, files = snakemake.params, snakemake.input
options = SolverOptions(**params.solvers)
queries = read_query_columns(files.gradients, point_digests(files.last, files.queries))
places = choose_queries(len(queries.losses), options.queries)

links = []
for link, *sources in zip(
    params.links, files.manifests, files.records, files.eigenbasis, files.eigenvalues, strict=True
):
    point = open_point(
        *sources[:2], params.max_length, params.gpus, params.split_heads, trust_remote_code=params.trust_remote_code
    )
    curvature, scale = open_link(link, *sources, point.blocks)
    examples = choose_sequences(point.examples, options.sequences, params.seed)
    operator = GaussNewton(point.model, point.blocks, examples, params.batch_tokens)
    links.append(Link(link["point"], operator, curvature, scale))

with measured() as cost:
    gradients = {block: formed(part[places]) for block, part in queries.of(queries.blocks).items()}
    columns, solutions = solve_chain(gradients, queries.blocks, links, params.solver, options, params.seed)
solves = [
    {
        "point": link.name,
        "sequences": len(link.gauss_newton.examples),
        "iterations": solution.iterations.tolist(),
        "residuals": solution.residuals.tolist(),
    }
    for link, solution in zip(links, solutions, strict=True)
]
print("\n".join(map(json.dumps, solves)))
attributes = {**queries.attributes, "columns": params.columns, "solves": json.dumps(solves), **cost}
output, losses = snakemake.output.columns, queries.losses[places]
with create_query_columns(output, losses, queries.blocks, attributes, places) as file:
    for block, solved in columns.items():
        file.write(block, slice(None), solved)
