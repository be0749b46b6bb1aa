# Estimators that look at retrained models, or at no gradients.


rule compute_ensemble_scores:
    input:
        shards=shard_files,
        records=lambda w: [f"results/{w.study}/data/{p}.jsonl" for p in stages_from(w)],
        attributed=attributed_records,
        queries="results/{study}/data/queries.jsonl",
    output:
        scores="results/{study}/scores/{stage}/multistage-ensemble.h5",
    log:
        "results/{study}/logs/compute_ensemble_scores/{stage}.log",
    conda:
        "../envs/forebear.yaml"
    threads: threads_of
    resources:
        mem_mb=memory(6000),
        runtime=growing(480),
        gpu=from_study("gpus"),
    params:
        study="{study}",
        stage="{stage}",
        members=lambda w: study_of(w).ensemble.members,
        links=lambda w: [link_of(w, point) for point in stages_from(w)],
        label_samples=from_study("label_samples"),
        seed=from_study("training_seed"),
        bank=located("results/{study}/ground_truth/retrainings"),
        loading=loading("split_heads"),
        batch_tokens=from_study("batch_tokens"),
        engine=engine("compute_ensemble_scores"),
    message:
        with_needs("{wildcards.study}: {wildcards.stage} scored at retrained chains")
    script:
        "../scripts/compute_ensemble_scores.py"


rule compute_trak_features:
    input:
        shards=shard_files,
        records=attributed_records,
        queries="results/{study}/data/queries.jsonl",
    output:
        features="results/{study}/trak/features.h5",
    log:
        "results/{study}/logs/compute_trak_features.log",
    conda:
        "../envs/forebear.yaml"
    threads: threads_of
    resources:
        mem_mb=memory(4000),
        runtime=growing(240),
        gpu=from_study("gpus"),
    params:
        study="{study}",
        members=lambda w: study_of(w).trak.members,
        side=lambda w: study_of(w).trak.side,
        seed=from_study("training_seed"),
        bank=located("results/{study}/ground_truth/retrainings"),
        last=lambda w: study_of(w).stage_names[-1],
        loading=loading("split_heads"),
        batch_tokens=from_study("batch_tokens"),
        engine=engine("compute_trak_features"),
    message:
        "{wildcards.study}: projected gradients at retrained models"
    script:
        "../scripts/compute_trak_features.py"


rule compute_trak_scores:
    input:
        features="results/{study}/trak/features.h5",
        records="results/{study}/data/{stage}.jsonl",
        collection=attributed_records,
        queries="results/{study}/data/queries.jsonl",
    output:
        scores="results/{study}/scores/{stage}/trak.h5",
    log:
        "results/{study}/logs/compute_trak_scores/{stage}.log",
    conda:
        "../envs/forebear.yaml"
    threads: threads_of
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),
    params:
        study="{study}",
        stage_index=lambda w: study_of(w).attributed.index(w.stage),
        engine=engine("compute_trak_scores"),
    message:
        "{wildcards.study}: {wildcards.stage} scored by TRAK"
    script:
        "../scripts/compute_trak_scores.py"


rule compute_baseline_scores:
    input:
        manifest=baseline_manifest,
        records=lambda w: scored_records(w.study, w.stage),
        collection=attributed_records,
        queries="results/{study}/data/queries.jsonl",
    output:
        scores="results/{study}/scores/{stage}/{estimator}.h5",
    log:
        "results/{study}/logs/compute_baseline_scores/{stage}-{estimator}.log",
    wildcard_constraints:
        estimator="|".join(BASELINES),
    conda:
        "../envs/forebear.yaml"
    threads: threads_of
    resources:
        mem_mb=baseline_memory,
        runtime=growing(60),
        gpu=baseline_gpus,
    params:
        study="{study}",
        stage="{stage}",
        estimator="{estimator}",
        stage_index=lambda w: study_of(w).attributed.index(w.stage),
        batch_tokens=from_study("batch_tokens"),
        loading=lambda w: {**loading_of(w.study, "precision"), "gpus": baseline_gpus(w)},
        seed=from_study("seed"),
        engine=engine("compute_baseline_scores"),
    message:
        with_needs(
            "{wildcards.study}: {wildcards.stage} scored by the baseline {wildcards.estimator}"
        )
    script:
        "../scripts/compute_baseline_scores.py"
