"""Let the last model answer every query, and record whether it is right."""

from forebear.runtime.job import start

start(snakemake)

from pathlib import Path

from forebear.data.chat import Chat
from forebear.data.records import read_records, write_records
from forebear.models.answers import answer_queries
from forebear.models.checkpoints import check_context, load_model, load_tokenizer, warn_of_size
from forebear.runtime.atomic import atomic_path

params = snakemake.params
loading = params.loading
warn_of_size("answers", snakemake.input.manifest, snakemake.resources.mem_mb, loading)
directory = Path(snakemake.input.manifest).parent
model = load_model(directory, loading["gpus"], loading["precision"], loading["trust_remote_code"])
check_context(model, loading["max_length"])
tokenizer = load_tokenizer(directory, loading["trust_remote_code"])
queries = read_records(snakemake.input.queries)
answers = answer_queries(model, tokenizer, queries, loading["max_length"], Chat(**loading["chat"]))
with atomic_path(snakemake.output.answers) as path:
    write_records(path, answers)
print(f"{sum(answer['correct'] for answer in answers)} of {len(answers)} answers are right")
