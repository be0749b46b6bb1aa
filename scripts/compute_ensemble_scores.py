"""Scores averaged over the chains of an ensemble, which are retrainings of the bank."""

from forebear.runtime.job import measured, start

start(snakemake)

from pathlib import Path

from forebear.artifacts.digests import collection_digest, file_digest
from forebear.artifacts.manifests import read_manifest
from forebear.factors.eigenvalue_functions import Damping
from forebear.gradients.point import open_point
from forebear.ground_truth.bank import checked_folder
from forebear.ground_truth.files import ensemble_keys
from forebear.queries.open_chain import pull_of
from forebear.runtime.progress import progress
from forebear.scores.ensemble import ChainStage, FactorOptions, chain_scores
from forebear.scores.files import write_scores

params, files = snakemake.params, snakemake.input
digest = {"data_digest": collection_digest(files.attributed)}
keys = ensemble_keys(files.shards, digest, params.seed, params.members)
options = FactorOptions(params.seed, params.batch_tokens, params.label_samples)

total, trained, scoring = 0.0, 0.0, 0.0
with measured() as cost:
    for key in progress(keys, "ensemble", "chain"):
        stages = []
        for link, records in zip(params.links, files.records, strict=True):
            manifest = checked_folder(Path(params.bank) / key / link["point"]) / "manifest.json"
            point = open_point(manifest, records, **params.loading)
            stages.append(ChainStage(point.model, point.examples, Damping(**link["damping"]), pull_of(link, manifest)))
        trained += read_manifest(manifest)["cost"]["seconds"]
        last = open_point(manifest, files.queries, **params.loading, end=False)
        scores, seconds = chain_scores(stages, last.examples, last.blocks, options)
        total = total + scores.double()
        scoring += seconds

# The chains' training is a cost of the method, although here they are at hand already.
attributes = {
    "study": params.study,
    "data_digest": file_digest(files.records[0]),
    "query_data_digest": file_digest(files.queries),
    **cost,
    "seconds": scoring,
    "overhead_seconds": trained + cost["seconds"] - scoring,
}
scores = (total / len(keys)).float().numpy()
write_scores(snakemake.output.scores, "multistage-ensemble", scores, attributes)
