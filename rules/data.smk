# Documents, fine-tuning data and queries: checked JSONL files under results/{study}/data/.


rule fetch_data:
    input:
        origin=lambda w: present(ORIGIN),
    output:
        records="results/{study}/fetched/{dataset}.jsonl",
    log:
        "results/{study}/logs/fetch_data/{dataset}.log",
    # A cluster's nodes often have no network.
    localrule: True
    conda:
        "../envs/forebear.yaml"
    resources:
        mem_mb=growing(4000),
        runtime=growing(120),
    params:
        dataset="{dataset}",
        source=from_hub,
        embedded=None,
        engine=engine("prepare_data"),
    message:
        with_needs("{wildcards.study}: fetch {wildcards.dataset} from the hub", gpus=False)
    script:
        "../scripts/prepare_data.py"


rule prepare_data:
    input:
        files=corpus_input,
    output:
        records="results/{study}/data/{dataset}.jsonl",
    log:
        "results/{study}/logs/prepare_data/{dataset}.log",
    conda:
        "../envs/forebear.yaml"
    resources:
        mem_mb=growing(1000),
        runtime=growing(10),
    params:
        dataset="{dataset}",
        source=corpus_source,
        embedded=embedded_corpus,
        engine=engine("prepare_data"),
    message:
        with_needs("{wildcards.study}: prepare {wildcards.dataset}", gpus=False)
    script:
        "../scripts/prepare_data.py"


rule trace_facts:
    input:
        lama=lambda w: present(study_of(w).corpus.lama),
        templates=lambda w: present(study_of(w).corpus.templates),
        trex=lambda w: present(study_of(w).corpus.trex),
    output:
        queries="results/{study}/traces/queries.jsonl",
        candidates="results/{study}/traces/candidates.jsonl",
    log:
        "results/{study}/logs/trace_facts.log",
    conda:
        "../envs/forebear.yaml"
    resources:
        mem_mb=growing(16000),
        runtime=growing(120),
    params:
        corpus=lambda w: study_of(w).corpus.model_dump(mode="json"),
        seed=from_study("seed"),
        engine=engine("trace_facts"),
    message:
        with_needs(
            "{wildcards.study}: facts of LAMA and the sentences of T-REx that are ranked for them",
            gpus=False,
        )
    script:
        "../scripts/trace_facts.py"


rule find_neighbours:
    input:
        queries=lambda w: source_input(w.study, "queries"),
        pool=lambda w: source_input(w.study, "candidates"),
        encoder="results/{study}/checkpoints/encoder/manifest.json",
    output:
        queries="results/{study}/neighbours/queries.jsonl",
        candidates="results/{study}/neighbours/candidates.jsonl",
    log:
        "results/{study}/logs/find_neighbours.log",
    conda:
        "../envs/forebear.yaml"
    threads: threads_of
    resources:
        mem_mb=growing(16000),
        runtime=growing(120),
        gpu=from_study("gpus"),
    params:
        queries=lambda w: local_source(w.study, "queries"),
        pool=lambda w: local_source(w.study, "candidates"),
        nearest=lambda w: study_of(w).corpus.neighbours.count,
        gpus=from_study("gpus"),
        trust_remote_code=from_study("trust_remote_code"),
        engine=engine("find_neighbours"),
    message:
        with_needs("{wildcards.study}: documents nearest to the queries")
    script:
        "../scripts/find_neighbours.py"
