# Gradients of the queries at the last model → preconditioned, or solved, for the documents of a stage.
# The jobs keep what they have finished of queries that are not new. Not by Snakemake's update(): after
# a job that fails it restores the old file as the newest, which then passes for up to date.
from forebear.estimators import COLUMNS


rule compute_query_gradients:
    input:
        manifest=lambda w: manifest(w.study, study_of(w).stage_names[-1]),
        queries="results/{study}/data/queries.jsonl",
    output:
        gradients="results/{study}/queries/gradients.h5",
    log:
        "results/{study}/logs/compute_query_gradients.log",
    conda:
        "../envs/forebear.yaml"
    threads: threads_of
    resources:
        mem_mb=memory(ASKED_MB["query gradients"]),
        runtime=growing(60),
        gpu=from_study("gpus"),
    params:
        study="{study}",
        stage=lambda w: study_of(w).stage_names[-1],
        loading=loading("split_heads", "precision"),
        batch_tokens=from_study("batch_tokens"),
        engine=engine("compute_query_gradients"),
    message:
        with_needs("{wildcards.study}: gradients of the queries at the last model")
    script:
        "../scripts/compute_query_gradients.py"


rule precondition_queries:
    input:
        gradients="results/{study}/queries/gradients.h5",
        eigenbasis=lambda w: [f"results/{w.study}/factors/{p}/eigenbasis.h5" for p in points_of(w)],
        eigenvalues=lambda w: [
            f"results/{w.study}/factors/{p}/eigenvalues.h5"
            for p in points_of(w)
            if COLUMNS[w.columns].curvature == "ekfac"
        ],
        manifests=lambda w: [manifest(w.study, model_of(p)) for p in points_of(w)],
        records=lambda w: [f"results/{w.study}/data/{data_of(p)}.jsonl" for p in points_of(w)],
        last=lambda w: manifest(w.study, study_of(w).stage_names[-1]),
        queries="results/{study}/data/queries.jsonl",
    output:
        columns="results/{study}/queries/{stage}/{columns}.h5",
    log:
        "results/{study}/logs/precondition_queries/{stage}-{columns}.log",
    wildcard_constraints:
        columns="|".join(n for n, c in COLUMNS.items() if c.stages != "none" and not c.solver),
    conda:
        "../envs/forebear.yaml"
    threads: threads_of
    resources:
        mem_mb=memory(4000),
        runtime=growing(60),
        gpu=from_study("gpus"),
    params:
        stage="{stage}",
        columns="{columns}",
        curvature=lambda w: COLUMNS[w.columns].curvature,
        unrolled=lambda w: COLUMNS[w.columns].unrolled,
        links=lambda w: [link_of(w, point) for point in points_of(w)],
        gpus=from_study("gpus"),
        engine=engine("precondition_queries"),
    message:
        with_needs(
            "{wildcards.study}: precondition the queries for {wildcards.columns} of {wildcards.stage}"
        )
    script:
        "../scripts/precondition_queries.py"


rule solve_queries:
    input:
        gradients="results/{study}/queries/gradients.h5",
        eigenbasis=lambda w: [f"results/{w.study}/factors/{p}/eigenbasis.h5" for p in points_of(w)],
        eigenvalues=lambda w: [
            f"results/{w.study}/factors/{p}/eigenvalues.h5" for p in points_of(w)
        ],
        manifests=lambda w: [manifest(w.study, model_of(p)) for p in points_of(w)],
        records=lambda w: [f"results/{w.study}/data/{data_of(p)}.jsonl" for p in points_of(w)],
        last=lambda w: manifest(w.study, study_of(w).stage_names[-1]),
        queries="results/{study}/data/queries.jsonl",
    output:
        columns="results/{study}/queries/{stage}/{columns}.h5",
    log:
        "results/{study}/logs/solve_queries/{stage}-{columns}.log",
    wildcard_constraints:
        columns="|".join(n for n, c in COLUMNS.items() if c.solver),
    conda:
        "../envs/forebear.yaml"
    threads: threads_of
    resources:
        mem_mb=memory(ASKED_MB["solutions"]),
        runtime=growing(480),
        gpu=from_study("gpus"),
    params:
        stage="{stage}",
        columns="{columns}",
        solver=lambda w: COLUMNS[w.columns].solver,
        solvers=lambda w: study_of(w).solvers.model_dump(),
        links=lambda w: [link_of(w, point) for point in points_of(w)],
        loading=loading("split_heads"),
        batch_tokens=from_study("batch_tokens"),
        seed=from_study("training_seed"),
        engine=engine("solve_queries"),
    message:
        with_needs("{wildcards.study}: solve for {wildcards.columns} of {wildcards.stage}")
    script:
        "../scripts/solve_queries.py"


rule compress_queries:
    input:
        columns="results/{study}/queries/{stage}/{columns}.h5",
        eigenbasis=lambda w: f"results/{w.study}/factors/{documents_point_of(w)}/eigenbasis.h5",
        manifest=lambda w: manifest(w.study, model_of(documents_point_of(w))),
        records=lambda w: f"results/{w.study}/data/{w.stage}.jsonl",
        last=lambda w: manifest(w.study, study_of(w).stage_names[-1]),
        queries="results/{study}/data/queries.jsonl",
    output:
        columns="results/{study}/queries/{stage}/compressed/{columns}.h5",
    log:
        "results/{study}/logs/compress_queries/{stage}-{columns}.log",
    conda:
        "../envs/forebear.yaml"
    threads: threads_of
    resources:
        mem_mb=memory(4000),
        runtime=growing(60),
        gpu=from_study("gpus"),
    params:
        rank=lambda w: study_of(w).compression.rank,
        seed=from_study("training_seed"),
        gpus=from_study("gpus"),
        engine=engine("compress_queries"),
    message:
        with_needs(
            "{wildcards.study}: compress the queries for {wildcards.columns} of {wildcards.stage}"
        )
    script:
        "../scripts/compress_queries.py"
