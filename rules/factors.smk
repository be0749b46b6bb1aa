# Curvature at a point: a stage's data at its own model, or at another stage's (data@model).


rule fit_covariances:
    input:
        manifest=lambda w: manifest(w.study, model_of(w.point)),
        records=lambda w: f"results/{w.study}/data/{data_of(w.point)}.jsonl",
    output:
        covariances="results/{study}/factors/{point}/covariances.h5",
    log:
        "results/{study}/logs/fit_covariances/{point}.log",
    cache: True
    priority: 10
    conda:
        "../envs/forebear.yaml"
    threads: threads_of
    resources:
        **planned("covariances", 4000, at_point),
        runtime=growing(120),
        gpu=from_study("gpus"),
    params:
        study="{study}",
        point="{point}",
        split_heads=from_study("split_heads"),
        label_samples=from_study("label_samples"),
        batch_tokens=from_study("batch_tokens"),
        max_length=from_study("max_length"),
        seed=from_study("training_seed"),
        gpus=from_study("gpus"),
        precision=from_study("precision"),
        engine=engine("fit_covariances"),
    message:
        with_needs("{wildcards.study}: covariances of {wildcards.point}", planned=True)
    script:
        "../scripts/fit_covariances.py"


rule compute_eigenbasis:
    input:
        covariances="results/{study}/factors/{point}/covariances.h5",
    output:
        eigenbasis="results/{study}/factors/{point}/eigenbasis.h5",
    log:
        "results/{study}/logs/compute_eigenbasis/{point}.log",
    cache: True
    priority: 10
    conda:
        "../envs/forebear.yaml"
    threads: threads_of
    resources:
        mem_mb=memory(4000),
        runtime=growing(120),
        gpu=from_study("gpus"),
    params:
        study="{study}",
        point="{point}",
        gpus=from_study("gpus"),
        engine=engine("compute_eigenbasis"),
    message:
        with_needs("{wildcards.study}: eigenbasis of {wildcards.point}")
    script:
        "../scripts/compute_eigenbasis.py"


rule fit_eigenvalues:
    input:
        manifest=lambda w: manifest(w.study, model_of(w.point)),
        records=lambda w: f"results/{w.study}/data/{data_of(w.point)}.jsonl",
        eigenbasis="results/{study}/factors/{point}/eigenbasis.h5",
    output:
        eigenvalues="results/{study}/factors/{point}/eigenvalues.h5",
    log:
        "results/{study}/logs/fit_eigenvalues/{point}.log",
    cache: True
    priority: 10
    conda:
        "../envs/forebear.yaml"
    threads: threads_of
    resources:
        **planned("eigenvalues", 4000, at_point),
        runtime=growing(120),
        gpu=from_study("gpus"),
    params:
        study="{study}",
        point="{point}",
        split_heads=from_study("split_heads"),
        label_samples=from_study("label_samples"),
        batch_tokens=from_study("batch_tokens"),
        max_length=from_study("max_length"),
        seed=from_study("training_seed"),
        gpus=from_study("gpus"),
        precision=from_study("precision"),
        engine=engine("fit_eigenvalues"),
    message:
        with_needs("{wildcards.study}: eigenvalues of {wildcards.point}", planned=True)
    script:
        "../scripts/fit_eigenvalues.py"
