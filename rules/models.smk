# The chain's models: each stage starts where the one before it ended.


def tokenizer_data(wildcards):
    """The first stage's vocabulary comes from all data of the study; later stages inherit it."""
    if previous_stage(wildcards.study, wildcards.stage):
        return []
    names = [*study_of(wildcards).stage_names, "queries"]
    return [f"results/{wildcards.study}/data/{name}.jsonl" for name in names]


def previous_manifest(wildcards):
    stage = previous_stage(wildcards.study, wildcards.stage)
    return manifest(wildcards.study, stage) if stage else []


rule train_stage:
    message:
        "{wildcards.study}: train the stage {wildcards.stage}"
    input:
        records="results/{study}/data/{stage}.jsonl",
        vocabulary=tokenizer_data,
        previous=previous_manifest,
    output:
        manifest="results/{study}/models/{stage}/manifest.json",
        weights="results/{study}/models/{stage}/model.safetensors",
    log:
        "results/{study}/logs/train_stage/{stage}.log",
    params:
        stage="{stage}",
        place=lambda w: study_of(w).stage_names.index(w.stage),
        training=lambda w: study_of(w).stage(w.stage).training.model_dump(),
        model=lambda w: None if previous_stage(w.study, w.stage) else study_of(w).model,
        max_length=from_study("max_length"),
        seed=from_study("seed"),
        gpus=from_study("gpus"),
        engine=engine("train_stage"),
    resources:
        mem_mb=mem_mb(2000),
        runtime=60,
        gpu=from_study("gpus"),
    priority: 10
    script:
        "../scripts/train_stage.py"


rule answer_queries:
    message:
        "{wildcards.study}: let the last model answer the queries"
    input:
        manifest=lambda w: manifest(w.study, study_of(w).stage_names[-1]),
        queries="results/{study}/data/queries.jsonl",
    output:
        answers="results/{study}/queries/answers.jsonl",
    log:
        "results/{study}/logs/answer_queries.log",
    params:
        max_length=from_study("max_length"),
        gpus=from_study("gpus"),
        engine=engine("answer_queries"),
    resources:
        mem_mb=mem_mb(2000),
        runtime=30,
        gpu=from_study("gpus"),
    script:
        "../scripts/answer_queries.py"
