"""Scores of a ranker that needs no gradients: embedding, cka, minilm, bm25 or random."""

from forebear.runtime.job import measured, start

start(snakemake)

from pathlib import Path

from forebear.artifacts.digests import file_digest
from forebear.artifacts.manifests import read_manifest
from forebear.data.chat import Chat
from forebear.data.records import Records, full_text, read_records
from forebear.data.text_rankers import bm25_index, bm25_scores, cosine_scores, sentence_embeddings
from forebear.data.token_files import open_sequences
from forebear.models.checkpoints import check_context, load_model, load_tokenizer, warn_of_size
from forebear.runtime.devices import device_for
from forebear.scores.baselines import cka_scores, mean_hidden_states, random_scores, unit_patterns
from forebear.scores.files import write_scores

params, files = snakemake.params, snakemake.input
loading = params.loading
collection, queries = [Records(file) for file in files.collection], read_records(files.queries)
documents = collection[params.stage_index]
digests = {"data_digest": file_digest(files.records), "query_data_digest": file_digest(files.queries)}
if files.manifest:
    digests["model_digest"] = read_manifest(files.manifest)["model_digest"]

device = device_for(loading["gpus"])
if params.estimator in ("embedding", "cka"):
    warn_of_size("baselines", files.manifest, snakemake.resources.mem_mb, loading)
    directory = Path(files.manifest).parent
    model = load_model(directory, loading["gpus"], loading["precision"], loading["trust_remote_code"])
    check_context(model, loading["max_length"])
    tokenizer = load_tokenizer(directory, loading["trust_remote_code"])
    ends = [(files.records, True), (files.queries, False)]
    chat = Chat(**loading["chat"])
    encoded = [open_sequences(file, tokenizer, loading["max_length"], end, chat=chat) for file, end in ends]

with measured() as overhead:
    if params.estimator == "embedding":
        embeddings = [mean_hidden_states(model, part, params.batch_tokens) for part in encoded]
    elif params.estimator == "cka":
        patterns = list(unit_patterns(model, encoded[1], params.batch_tokens))
    elif params.estimator == "minilm":
        embeddings = [sentence_embeddings(list(map(full_text, part)), device) for part in (documents, queries)]
    elif params.estimator == "bm25":
        index = bm25_index([document for part in collection for document in part])

with measured() as cost:
    if params.estimator == "cka":
        scores = cka_scores(model, encoded[0], patterns, params.batch_tokens)
    elif params.estimator == "bm25":
        before = sum(map(len, collection[: params.stage_index]))
        scores = bm25_scores(index, queries)[before:][: len(documents)]
    elif params.estimator == "random":
        scores = random_scores(len(documents), len(queries), (params.seed, params.stage_index))
    else:
        scores = cosine_scores(*embeddings)

attributes = {"study": params.study, "overhead_seconds": overhead["seconds"], **digests, **cost}
write_scores(snakemake.output.scores, params.estimator, scores, attributes)
