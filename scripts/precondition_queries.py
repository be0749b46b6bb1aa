"""Apply a chain's inverses to the query gradients."""

from forebear.jobs import measured, start

start(snakemake.log[0], snakemake.threads)

from forebear.artifacts import read_eigenbasis, read_eigenvalues, read_query_columns, write_query_columns
from forebear.chain import Curvature, default_pull, precondition_chain
from forebear.kronecker import Damping, kfac_eigenvalues
from forebear.manifests import point_digests, read_manifest
from forebear.store import read_attributes

params, files = snakemake.params, snakemake.input
queries = read_query_columns(files.gradients, point_digests(files.last, files.queries))

links = []
for k, link in enumerate(params.links):
    digests = point_digests(files.manifests[k], files.records[k])
    basis = read_eigenbasis(files.eigenbasis[k], digests)
    if params.curvature == "ekfac":
        eigenvalues = read_eigenvalues(files.eigenvalues[k], digests)
    else:
        made_from = read_attributes(files.eigenbasis[k], "eigenbasis")
        eigenvalues = kfac_eigenvalues(basis, queries.blocks, made_from["positions"] / made_from["sequences"])
    pull = default_pull(read_manifest(files.manifests[k])["training"]) if link["alpha"] == "auto" else link["alpha"]
    print(f"{link['point']}: damping {link['damping']}, α {pull}")
    links.append(
        (Curvature(basis, eigenvalues, Damping(**link["damping"]), pull or 0.0), pull if link["scaled"] else 1.0)
    )

with measured() as cost:
    columns = precondition_chain(queries.columns, queries.blocks, links)
attributes = {**queries.attributes, "columns": params.columns, **cost}
write_query_columns(snakemake.output.columns, columns, queries.losses, queries.blocks, attributes)
