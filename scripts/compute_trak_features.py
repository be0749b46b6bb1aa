"""Projected gradients of documents and queries at retrained models, for TRAK."""

from forebear.runtime.job import measured, start

start(snakemake)

from forebear.artifacts.digests import collection_digest, file_digest
from forebear.artifacts.manifests import read_manifest
from forebear.gradients.point import open_point
from forebear.ground_truth.bank import checked_manifest
from forebear.ground_truth.files import ensemble_keys
from forebear.runtime.progress import progress
from forebear.scores.trak import Member, error_probabilities, projected_gradients, write_members

params, files = snakemake.params, snakemake.input
digest = {"data_digest": collection_digest(files.records)}
keys = ensemble_keys(files.shards, digest, params.seed, params.members)

members, trained = [], 0.0
with measured() as cost:
    for k, key in enumerate(progress(keys, "TRAK", "model")):
        manifest = checked_manifest(params.bank, key, params.last)
        trained += read_manifest(manifest)["cost"]["seconds"]
        documents = [e for file in files.records for e in open_point(manifest, file, **params.loading).examples]
        point = open_point(manifest, files.queries, **params.loading, end=False)
        features = [
            projected_gradients(point.model, point.blocks, examples, params.side, (params.seed, k), params.batch_tokens)
            for examples in (documents, point.examples)
        ]
        members.append(Member(*features, error_probabilities(point.model, documents, params.batch_tokens)))

# The members' training is a cost of the method, although here they are at hand already.
cost = {**cost, "seconds": cost["seconds"] + trained, "training_seconds": trained}
attributes = {"study": params.study, **digest, "query_data_digest": file_digest(files.queries), **cost}
write_members(snakemake.output.features, members, attributes)
