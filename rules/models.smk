# The chain's models: published ones are fetched, others start where the stage before ended.


rule download_model:
    input:
        files=checkpoint_files,
        previous=checkpoint_before,
    output:
        manifest="results/{study}/checkpoints/{name}/manifest.json",
    log:
        "results/{study}/logs/download_model/{name}.log",
    wildcard_constraints:
        name="|".join([*STAGES, "encoder"]),
    # What is wrong with a checkpoint is found before long jobs on another one begin.
    priority: 1
    # A cluster's nodes often have no network.
    localrule: True
    conda:
        "../envs/forebear.yaml"
    resources:
        mem_mb=growing(16000),
        runtime=growing(60),
    params:
        name="{name}",
        checkpoint=lambda w: published(w).model_dump(mode="json"),
        encoder=lambda w: w.name == "encoder",
        trust_remote_code=from_study("trust_remote_code"),
        engine=engine("download_model"),
    message:
        with_needs("{wildcards.study}: fetch the published model of {wildcards.name}", gpus=False)
    script:
        "../scripts/download_model.py"


rule train_stage:
    input:
        records="results/{study}/data/{stage}.jsonl",
        vocabulary=tokenizer_data,
        previous=previous_manifest,
    output:
        **with_receipts(
            manifest="results/{study}/models/{stage}/manifest.json",
            weights="results/{study}/models/{stage}/model.safetensors",
            config="results/{study}/models/{stage}/config.json",
            tokenizer="results/{study}/models/{stage}/tokenizer.json",
            tokenizer_config="results/{study}/models/{stage}/tokenizer_config.json",
        ),
    log:
        "results/{study}/logs/train_stage/{stage}.log",
    cache: True
    conda:
        "../envs/forebear.yaml"
    resources:
        mem_mb=memory(ASKED_MB["training"]),
        runtime=growing(60),
        gpu=from_study("gpus"),
    params:
        study="{study}",
        stage="{stage}",
        stage_index=lambda w: study_of(w).stage_names.index(w.stage),
        task=lambda w: study_of(w).stage(w.stage).task,
        training=lambda w: study_of(w).stage(w.stage).training.model_dump(),
        model=lambda w: None if previous_stage(w.study, w.stage) else study_of(w).model,
        loading=loading(),
        seed=from_study("training_seed"),
        engine=engine("train_stage"),
    message:
        with_needs("{wildcards.study}: train the stage {wildcards.stage}")
    script:
        "../scripts/train_stage.py"


rule answer_queries:
    input:
        manifest=lambda w: manifest(w.study, study_of(w).stage_names[-1]),
        queries="results/{study}/data/queries.jsonl",
    output:
        answers="results/{study}/queries/answers.jsonl",
    log:
        "results/{study}/logs/answer_queries.log",
    conda:
        "../envs/forebear.yaml"
    resources:
        mem_mb=memory(ASKED_MB["answers"]),
        runtime=growing(30),
        gpu=from_study("gpus"),
    params:
        loading=loading("precision"),
        engine=engine("answer_queries"),
    message:
        with_needs("{wildcards.study}: let the last model answer the queries")
    script:
        "../scripts/answer_queries.py"
