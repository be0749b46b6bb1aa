# Documents, fine-tuning data and queries: checked JSONL files under results/{study}/data/.


def corpus_file(wildcards):
    """The user's file behind a data set; embedded corpora need none."""
    corpus = study_of(wildcards).corpus
    if not isinstance(corpus, FileCorpus):
        return []
    return corpus.queries if wildcards.dataset == "queries" else corpus.documents[wildcards.dataset]


rule prepare_data:
    message:
        "{wildcards.study}: prepare {wildcards.dataset}"
    input:
        file=corpus_file,
    output:
        records="results/{study}/data/{dataset}.jsonl",
    log:
        "results/{study}/logs/prepare_data/{dataset}.log",
    params:
        dataset="{dataset}",
        corpus=lambda w: study_of(w).corpus.model_dump(mode="json"),
        seed=from_study("seed"),
        engine=engine("prepare_data"),
    resources:
        mem_mb=mem_mb(1000),
        runtime=10,
    script:
        "../scripts/prepare_data.py"
