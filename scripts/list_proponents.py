"""For every query the documents that speak most for and against the answer."""

from forebear.jobs import start

start(snakemake.log[0], snakemake.threads)

from forebear.artifacts import read_scores
from forebear.datasets import file_digest, read_jsonl, read_records
from forebear.reports import proponents_markdown
from forebear.store import atomic_path

params, files = snakemake.params, snakemake.input
digests = {"data_digest": file_digest(files.records), "query_data_digest": file_digest(files.queries)}
scores, _ = read_scores(files.scores, digests)
page = proponents_markdown(
    params.study,
    read_records(files.queries),
    read_jsonl(files.answers),
    read_records(files.records),
    scores,
    params.top,
    params.estimator,
)
with atomic_path(snakemake.output.page) as path:
    path.write_text(page, encoding="utf-8")
