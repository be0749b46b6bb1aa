"""The files between jobs, whatever they hold: HDF5, digests, manifests, versions, growing matrices and shards."""
