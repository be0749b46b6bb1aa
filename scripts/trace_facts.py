"""Queries from LAMA, and the sentences of T-REx that every ranker sees for them."""

from forebear.runtime.job import start

start(snakemake)

from forebear.data.lama import Counts, choose_candidates, read_facts, read_sentences
from forebear.data.records import write_records
from forebear.runtime.atomic import atomic_path

corpus = snakemake.params.corpus
counts = Counts(**{name: corpus[name] for name in ("queries", "random", "bm25", "same_object")})
facts = read_facts(corpus["lama"], corpus["templates"])
sentences = read_sentences(corpus["trex"], {fact["fact"] for fact in facts})
queries, candidates = choose_candidates(facts, sentences, counts, snakemake.params.seed)
for file, records in ((snakemake.output.queries, queries), (snakemake.output.candidates, candidates)):
    with atomic_path(file) as path:
        write_records(path, records)
print(f"{len(facts)} facts, {len(sentences)} sentences; {len(queries)} queries, {len(candidates)} candidates")
