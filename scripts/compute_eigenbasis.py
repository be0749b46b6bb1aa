"""Eigendecompositions of the covariances at one curvature point."""

from forebear.jobs import measured, start

start(snakemake.log[0], snakemake.threads)

from forebear.factor_files import read_covariances, write_eigenbasis
from forebear.kronecker import compute_eigenbasis
from forebear.store import read_attributes

made_from = read_attributes(snakemake.input.covariances, "covariances")
covariances = read_covariances(snakemake.input.covariances)
with measured() as cost:
    basis = compute_eigenbasis(covariances)
write_eigenbasis(snakemake.output.eigenbasis, basis, {**made_from, **cost})
