"""Eigendecompositions of the covariances at one curvature point."""

from forebear.devices import lease_devices
from forebear.jobs import measured, start

start(snakemake.log[0], snakemake.threads)
lease_devices(snakemake.params.gpus)

from forebear.checkpoints import device_for
from forebear.factor_files import read_covariances, write_eigenbasis
from forebear.kronecker import compute_eigenbasis
from forebear.store import read_attributes

made_from = read_attributes(snakemake.input.covariances, "covariances")
covariances = read_covariances(snakemake.input.covariances)
with measured() as cost:
    basis = compute_eigenbasis(covariances, device_for(snakemake.params.gpus))
write_eigenbasis(snakemake.output.eigenbasis, basis, {**made_from, **cost})
