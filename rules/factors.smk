# Curvature at a point: a stage's data at its own model, or at another stage's (data@model).


rule fit_covariances:
    input:
        manifest=lambda w: manifest(w.study, model_of(w.point)),
        records=lambda w: f"results/{w.study}/data/{data_of(w.point)}.jsonl",
    output:
        **with_receipts(
            covariances=temp("results/{study}/factors/{point}/covariances/{shard}-of-{shards}.h5")
        ),
    log:
        "results/{study}/logs/fit_covariances/{point}/{shard}-of-{shards}.log",
    cache: True
    conda:
        "../envs/forebear.yaml"
    threads: threads_of
    resources:
        mem_mb=memory(ASKED_MB["covariances"]),
        runtime=growing(120),
        gpu=from_study("gpus"),
    params:
        study="{study}",
        point="{point}",
        loading=loading("split_heads", "precision"),
        label_samples=from_study("label_samples"),
        batch_tokens=from_study("batch_tokens"),
        seed=from_study("training_seed"),
        shard=shard_of,
        engine=engine("fit_covariances"),
    message:
        with_needs(
            "{wildcards.study}: covariances of {wildcards.point}, shard {wildcards.shard} of {wildcards.shards}"
        )
    script:
        "../scripts/fit_covariances.py"


rule compute_eigenbasis:
    input:
        covariances="results/{study}/factors/{point}/covariances.h5",
    output:
        **with_receipts(eigenbasis="results/{study}/factors/{point}/eigenbasis.h5"),
    log:
        "results/{study}/logs/compute_eigenbasis/{point}.log",
    cache: True
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
        **with_receipts(
            eigenvalues=temp("results/{study}/factors/{point}/eigenvalues/{shard}-of-{shards}.h5")
        ),
    log:
        "results/{study}/logs/fit_eigenvalues/{point}/{shard}-of-{shards}.log",
    cache: True
    conda:
        "../envs/forebear.yaml"
    threads: threads_of
    resources:
        mem_mb=memory(ASKED_MB["eigenvalues"]),
        runtime=growing(120),
        gpu=from_study("gpus"),
    params:
        study="{study}",
        point="{point}",
        loading=loading("split_heads", "precision"),
        label_samples=from_study("label_samples"),
        batch_tokens=from_study("batch_tokens"),
        seed=from_study("training_seed"),
        shard=shard_of,
        engine=engine("fit_eigenvalues"),
    message:
        with_needs(
            "{wildcards.study}: eigenvalues of {wildcards.point}, shard {wildcards.shard} of {wildcards.shards}"
        )
    script:
        "../scripts/fit_eigenvalues.py"


rule gather_factors:
    input:
        shards=shards_of("factors/{point}/{factor}"),
        manifest=lambda w: manifest(w.study, model_of(w.point)),
        records=lambda w: f"results/{w.study}/data/{data_of(w.point)}.jsonl",
    output:
        **with_receipts(factor="results/{study}/factors/{point}/{factor}.h5"),
    log:
        "results/{study}/logs/gather_factors/{point}-{factor}.log",
    wildcard_constraints:
        factor="covariances|eigenvalues",
    cache: True
    conda:
        "../envs/forebear.yaml"
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),
    params:
        study="{study}",
        point="{point}",
        factor="{factor}",
        shards=from_study("shards"),
        seed=from_study("training_seed"),
        engine=engine("gather_factors"),
    message:
        with_needs(
            "{wildcards.study}: put the shards of the {wildcards.factor} of {wildcards.point} together",
            gpus=False,
        )
    script:
        "../scripts/gather_factors.py"
