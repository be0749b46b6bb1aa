# Real retraining on random halves of the documents, which the estimators have to predict.


rule draw_subsets:
    input:
        records=attributed_records,
    output:
        subsets="results/{study}/ground_truth/subsets.h5",
    log:
        "results/{study}/logs/draw_subsets.log",
    conda:
        "../envs/forebear.yaml"
    resources:
        mem_mb=growing(1000),
        runtime=growing(10),
    params:
        study="{study}",
        stages=from_study("attributed"),
        fraction=lambda w: study_of(w).ground_truth.fraction,
        subsets=lambda w: study_of(w).ground_truth.subsets,
        seed=from_study("seed"),
        engine=engine("draw_subsets"),
    message:
        "{wildcards.study}: draw subsets of the documents"
    script:
        "../scripts/draw_subsets.py"


# One thread each: several one-thread retrainings beat one with many threads. They take longest
# and need only data, so they start first, and short jobs fill the cores that remain.
rule retrain:
    input:
        subsets="results/{study}/ground_truth/subsets.h5",
        records=lambda w: [
            f"results/{w.study}/data/{stage}.jsonl" for stage in study_of(w).stage_names
        ],
        attributed=attributed_records,
        initial=initial_manifest,
    output:
        shard="results/{study}/ground_truth/shards/{shard}-of-{shards}.h5",
    log:
        "results/{study}/logs/retrain/{shard}-of-{shards}.log",
    priority: 1
    conda:
        "../envs/forebear.yaml"
    resources:
        mem_mb=memory(2000),
        runtime=growing(720),
        gpu=from_study("gpus"),
    params:
        study="{study}",
        shard=lambda w: int(w.shard),
        shards=lambda w: int(w.shards),
        subsets=lambda w: study_of(w).ground_truth.subsets,
        repeats=lambda w: study_of(w).ground_truth.repeats,
        first_stage=lambda w: study_of(w).stage_names.index(study_of(w).attributed[0]),
        stages=retrained_stages,
        tasks=lambda w: [study_of(w).stage(s).task for s in retrained_stages(w)],
        training=lambda w: [study_of(w).stage(s).training.model_dump() for s in retrained_stages(w)],
        model=lambda w: None if initial_manifest(w) else study_of(w).model,
        loading=loading(),
        seed=from_study("training_seed"),
        bank=located("results/{study}/ground_truth/retrainings"),
        accept_other_versions=lambda w: study_of(w).ground_truth.accept_other_versions,
        engine=engine("retrain"),
    message:
        with_needs(
            "{wildcards.study}: retrain on subsets, shard {wildcards.shard} of {wildcards.shards}"
        )
    script:
        "../scripts/retrain.py"


rule measure_retrainings:
    input:
        subsets="results/{study}/ground_truth/subsets.h5",
        shards=shard_files,
        queries="results/{study}/data/queries.jsonl",
    output:
        bank="results/{study}/ground_truth/bank.h5",
    log:
        "results/{study}/logs/measure_retrainings.log",
    conda:
        "../envs/forebear.yaml"
    threads: threads_of
    resources:
        mem_mb=memory(2000),
        runtime=growing(120),
        gpu=from_study("gpus"),
    params:
        study="{study}",
        loading=loading(),
        bank=located("results/{study}/ground_truth/retrainings"),
        last=lambda w: study_of(w).stage_names[-1],
        engine=engine("measure_retrainings"),
    message:
        with_needs("{wildcards.study}: measure the queries at every retrained model")
    script:
        "../scripts/measure_retrainings.py"
