"""Scores of a ranker that needs no gradients: embedding, bm25 or random."""

from forebear.devices import lease_devices
from forebear.jobs import measured, start

start(snakemake.log[0], snakemake.threads)
lease_devices(snakemake.params.gpus)

from pathlib import Path

from forebear.artifacts import write_scores
from forebear.baselines import bm25_index, bm25_scores, cosine_scores, mean_hidden_states, random_scores
from forebear.datasets import read_records
from forebear.manifests import point_digests

params, files = snakemake.params, snakemake.input
collection, queries = [read_records(file) for file in files.collection], read_records(files.queries)
documents = collection[params.place]
digests = point_digests(files.manifest, files.records)
digests["query_data_digest"] = point_digests(files.manifest, files.queries)["data_digest"]

if params.estimator == "embedding":
    from forebear.checkpoints import device_for, load_model, load_tokenizer
    from forebear.datasets import encode

    directory = Path(files.manifest).parent
    model, tokenizer = load_model(directory).to(device_for(params.gpus)), load_tokenizer(directory)
    ends = [(documents, True), (queries, False)]
    examples = [encode(records, tokenizer, params.max_length, end=end) for records, end in ends]
    with measured() as overhead:
        embeddings = [mean_hidden_states(model, part, params.batch_tokens) for part in examples]
    with measured() as cost:
        scores = cosine_scores(*embeddings)
elif params.estimator == "bm25":
    with measured() as overhead:
        index = bm25_index([document for part in collection for document in part])
    with measured() as cost:
        before = sum(map(len, collection[: params.place]))
        scores = bm25_scores(index, queries)[before:][: len(documents)]
else:
    with measured() as overhead:
        pass
    with measured() as cost:
        scores = random_scores(len(documents), len(queries), (params.seed, params.place))

attributes = {"study": params.study, "estimator": params.estimator, "overhead_seconds": overhead["seconds"]}
write_scores(snakemake.output.scores, scores, {**attributes, **digests, **cost})
