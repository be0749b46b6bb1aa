# Documents, fine-tuning data and queries: checked JSONL files under results/{study}/data/.


rule prepare_data:
    input:
        file=corpus_file,
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
        corpus=lambda w: study_of(w).corpus.model_dump(mode="json"),
        seed=from_study("seed"),
        engine=engine("prepare_data"),
    message:
        "{wildcards.study}: prepare {wildcards.dataset}"
    script:
        "../scripts/prepare_data.py"
