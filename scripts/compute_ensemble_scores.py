"""Scores averaged over the chains of an ensemble, which are retrainings of the bank."""

from forebear.runtime.job import measured, start

start(snakemake)

from forebear.artifacts.digests import collection_digest, file_digest
from forebear.artifacts.manifests import read_manifest
from forebear.ground_truth.bank import checked_manifest
from forebear.ground_truth.files import ensemble_keys
from forebear.runtime.progress import progress
from forebear.scores.ensemble import FactorOptions, mean_scores, open_chain
from forebear.scores.files import write_scores

params, files = snakemake.params, snakemake.input
keys = ensemble_keys(files.shards, {"data_digest": collection_digest(files.attributed)}, params.seed, params.members)
chains = [[checked_manifest(params.bank, key, link["point"]) for link in params.links] for key in keys]
described = (params.links, files.records, files.queries, params.loading)
with measured() as cost:
    opened = (open_chain(manifests, *described) for manifests in progress(chains, "ensemble", "chain"))
    options = FactorOptions(params.seed, params.batch_tokens, params.label_samples)
    scores, scoring = mean_scores(opened, options)

# The chains' training is a cost of the method, although here they are at hand already.
trained = sum(read_manifest(manifests[-1])["cost"]["seconds"] for manifests in chains)
attributes = {
    "study": params.study,
    "data_digest": file_digest(files.records[0]),
    "query_data_digest": file_digest(files.queries),
    **cost,
    "seconds": scoring,
    "overhead_seconds": trained + cost["seconds"] - scoring,
}
write_scores(snakemake.output.scores, "multistage-ensemble", scores, attributes)
