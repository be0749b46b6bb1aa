"""Eigendecompositions of the covariances at one curvature point."""

from forebear.runtime.job import measured, start

start(snakemake)

from forebear.artifacts.hdf5 import read_attributes
from forebear.factors.files import create_factors, stored_covariances
from forebear.factors.kronecker import eigenbasis_parts
from forebear.runtime.devices import device_for

made_from = read_attributes(snakemake.input.covariances, "covariances")
covariances = stored_covariances(snakemake.input.covariances)
with create_factors(snakemake.output.eigenbasis, "eigenbasis", made_from) as file:
    with measured() as cost:
        for part in eigenbasis_parts(covariances, device_for(snakemake.params.gpus)):
            file.write(part)
    file.note(cost)
