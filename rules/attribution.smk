# Query gradients → preconditioned queries → scores of every document for every query.
# Where files are updated, the jobs keep what they hold of queries and estimators that are not new.


rule compute_query_gradients:
    input:
        manifest=lambda w: manifest(w.study, study_of(w).stage_names[-1]),
        queries="results/{study}/data/queries.jsonl",
    output:
        gradients=update("results/{study}/queries/gradients.h5"),
    log:
        "results/{study}/logs/compute_query_gradients.log",
    conda:
        "../envs/forebear.yaml"
    threads: threads_of
    resources:
        **planned("query gradients", 4000, lambda w: (study_of(w).stage_names[-1], "queries")),
        runtime=growing(60),
        gpu=from_study("gpus"),
    params:
        study="{study}",
        split_heads=from_study("split_heads"),
        batch_tokens=from_study("batch_tokens"),
        max_length=from_study("max_length"),
        gpus=from_study("gpus"),
        trust_remote_code=from_study("trust_remote_code"),
        precision=from_study("precision"),
        engine=engine("compute_query_gradients"),
    message:
        with_needs("{wildcards.study}: gradients of the queries at the last model", planned=True)
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
        columns=update("results/{study}/queries/{stage}/{columns}.h5"),
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
        columns=update("results/{study}/queries/{stage}/{columns}.h5"),
    log:
        "results/{study}/logs/solve_queries/{stage}-{columns}.log",
    wildcard_constraints:
        columns="|".join(n for n, c in COLUMNS.items() if c.solver),
    conda:
        "../envs/forebear.yaml"
    threads: threads_of
    resources:
        mem_mb=growing(6000),
        runtime=growing(480),
        gpu=from_study("gpus"),
    params:
        stage="{stage}",
        columns="{columns}",
        solver=lambda w: COLUMNS[w.columns].solver,
        solvers=lambda w: study_of(w).solvers.model_dump(),
        links=lambda w: [link_of(w, point) for point in points_of(w)],
        split_heads=from_study("split_heads"),
        batch_tokens=from_study("batch_tokens"),
        max_length=from_study("max_length"),
        seed=from_study("training_seed"),
        gpus=from_study("gpus"),
        trust_remote_code=from_study("trust_remote_code"),
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


# One pass over a stage's documents serves all estimators that look at them at the same model;
# it writes one file an estimator, so there is one rule for each study, stage and model. Files
# are updated: one more estimator leaves those of the others as they are. Where shards share
# the pass, there is such a file for each shard.
for study, attributed, stage, estimators in all_passes():
    note = (
        ", shard {wildcards.shard} of {wildcards.shards}"
        if CONFIG.studies[study].shards > 1
        else ""
    )

    rule:
        name:
            f"compute_pairwise_scores_{study}_{attributed}_at_{stage}"
        input:
            manifest=manifest(study, stage),
            records=scored_records(study, attributed),
            last=manifest(study, CONFIG.studies[study].stage_names[-1]),
            queries=f"results/{study}/data/queries.jsonl",
            columns=[
                first_columns_file(study, attributed, columns)
                for columns in columns_of(estimators)
            ],
        output:
            scores=[
                update(whole_or_shard(study, first_scores(study, attributed, e), "h5"))
                for e in estimators
            ],
        log:
            whole_or_shard(
                study,
                f"results/{study}/logs/compute_pairwise_scores/{attributed}_at_{stage}",
                "log",
            ),
        conda:
            "../envs/forebear.yaml"
        threads: CONFIG.studies[study].threads
        resources:
            **planned(
                "scores",
                6000,
                lambda w, at=stage, of=Path(scored_records(study, attributed)).stem: (at, of),
                study,
                estimators,
            ),
            runtime=growing(240),
            gpu=CONFIG.studies[study].gpus,
        params:
            study=study,
            shard=shard_of,
            estimators=estimators,
            columns=columns_of(estimators),
            split_heads=CONFIG.studies[study].split_heads,
            batch_tokens=CONFIG.studies[study].batch_tokens,
            max_length=CONFIG.studies[study].max_length,
            gpus=CONFIG.studies[study].gpus,
            precision=CONFIG.studies[study].precision,
            trust_remote_code=CONFIG.studies[study].trust_remote_code,
            engine=engine("compute_pairwise_scores"),
        message:
            with_needs(
                f"{study}: score the documents of {attributed} at the {stage} model{note}",
                planned=True,
            )
        script:
            "../scripts/compute_pairwise_scores.py"

    if CONFIG.studies[study].compression.rank is None:
        continue

    rule:
        name:
            f"rescore_documents_{study}_{attributed}_at_{stage}"
        input:
            first=[f"{first_scores(study, attributed, e)}.h5" for e in estimators],
            manifest=manifest(study, stage),
            records=scored_records(study, attributed),
            last=manifest(study, CONFIG.studies[study].stage_names[-1]),
            queries=f"results/{study}/data/queries.jsonl",
            columns=[columns_file(study, attributed, columns) for columns in columns_of(estimators)],
            compressed=[
                first_columns_file(study, attributed, columns)
                for columns in columns_of(estimators)
                if is_compressed(study, columns)
            ],
        output:
            scores=[update(f"results/{study}/scores/{attributed}/{e}.h5") for e in estimators],
        log:
            f"results/{study}/logs/rescore_documents/{attributed}_at_{stage}.log",
        conda:
            "../envs/forebear.yaml"
        threads: CONFIG.studies[study].threads
        resources:
            **planned(
                "rescoring",
                6000,
                lambda w, at=stage, of=Path(scored_records(study, attributed)).stem: (at, of),
                study,
                estimators,
            ),
            runtime=growing(240),
            gpu=CONFIG.studies[study].gpus,
        params:
            study=study,
            estimators=estimators,
            columns=columns_of(estimators),
            rescore=CONFIG.studies[study].compression.rescore,
            split_heads=CONFIG.studies[study].split_heads,
            batch_tokens=CONFIG.studies[study].batch_tokens,
            max_length=CONFIG.studies[study].max_length,
            gpus=CONFIG.studies[study].gpus,
            precision=CONFIG.studies[study].precision,
            trust_remote_code=CONFIG.studies[study].trust_remote_code,
            engine=engine("rescore_documents"),
        message:
            with_needs(
                f"{study}: score the outermost documents of {attributed} at the {stage} model again, with whole queries",
                planned=True,
            )
        script:
            "../scripts/rescore_documents.py"


rule gather_scores:
    input:
        shards=shards_of("scores/{stage}/{estimator}"),
        manifest=lambda w: manifest(w.study, scoring_stage(w)),
        records=lambda w: scored_records(w.study, w.stage),
    output:
        rows="results/{study}/scores/{stage}/{estimator}.h5",
    log:
        "results/{study}/logs/gather_scores/{stage}-{estimator}.log",
    wildcard_constraints:
        study=GATHERED,
        estimator="|".join(name for name, e in ESTIMATORS.items() if e.uses_gradients),
    conda:
        "../envs/forebear.yaml"
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),
    params:
        kind="scores",
        shards=from_study("shards"),
        engine=engine("gather_scores"),
    message:
        "{wildcards.study}: put the shards of {wildcards.estimator} for {wildcards.stage} together"
    script:
        "../scripts/gather_scores.py"


use rule gather_scores as gather_compressed_scores with:
    input:
        shards=shards_of("scores/{stage}/compressed/{estimator}"),
        manifest=lambda w: manifest(w.study, scoring_stage(w)),
        records=lambda w: scored_records(w.study, w.stage),
    output:
        rows="results/{study}/scores/{stage}/compressed/{estimator}.h5",
    log:
        "results/{study}/logs/gather_compressed_scores/{stage}-{estimator}.log",
    wildcard_constraints:
        study=GATHERED_FIRST,
        estimator="|".join(name for name, e in ESTIMATORS.items() if e.uses_gradients),


rule compute_self_influence:
    input:
        manifest=lambda w: manifest(w.study, w.stage),
        records=lambda w: scored_records(w.study, w.stage),
        fitted="results/{study}/data/{stage}.jsonl",
        eigenbasis="results/{study}/factors/{stage}/eigenbasis.h5",
        eigenvalues="results/{study}/factors/{stage}/eigenvalues.h5",
    output:
        values="results/{study}/self_influence/{stage}.h5",
    log:
        "results/{study}/logs/compute_self_influence/{stage}.log",
    wildcard_constraints:
        study=WHOLE,
    conda:
        "../envs/forebear.yaml"
    threads: threads_of
    resources:
        mem_mb=memory(4000),
        runtime=growing(120),
        gpu=from_study("gpus"),
    params:
        study="{study}",
        link=lambda w: link_of(w, w.stage),
        shard=shard_of,
        split_heads=from_study("split_heads"),
        batch_tokens=from_study("batch_tokens"),
        max_length=from_study("max_length"),
        gpus=from_study("gpus"),
        trust_remote_code=from_study("trust_remote_code"),
        precision=from_study("precision"),
        engine=engine("compute_self_influence"),
    message:
        with_needs("{wildcards.study}: self-influence of the documents of {wildcards.stage}")
    script:
        "../scripts/compute_self_influence.py"


use rule compute_self_influence as compute_self_influence_shard with:
    output:
        values=temp("results/{study}/self_influence/{stage}/{shard}-of-{shards}.h5"),
    log:
        "results/{study}/logs/compute_self_influence/{stage}/{shard}-of-{shards}.log",
    wildcard_constraints:
        study=SHARDED,
    message:
        with_needs(
            "{wildcards.study}: self-influence of the documents of {wildcards.stage}, shard {wildcards.shard} of {wildcards.shards}"
        )


use rule gather_scores as gather_self_influence with:
    input:
        shards=shards_of("self_influence/{stage}"),
        manifest=lambda w: manifest(w.study, w.stage),
        records=lambda w: scored_records(w.study, w.stage),
    output:
        rows="results/{study}/self_influence/{stage}.h5",
    log:
        "results/{study}/logs/gather_self_influence/{stage}.log",
    wildcard_constraints:
        study=SHARDED,
    params:
        kind="self-influence",
    message:
        "{wildcards.study}: put the shards of the self-influence of {wildcards.stage} together"


rule normalise_scores:
    input:
        scores=base_scores,
        self_influence="results/{study}/self_influence/{stage}.h5",
        records=lambda w: scored_records(w.study, w.stage),
        queries="results/{study}/data/queries.jsonl",
    output:
        scores="results/{study}/scores/{stage}/{estimator}.h5",
    log:
        "results/{study}/logs/normalise_scores/{stage}-{estimator}.log",
    wildcard_constraints:
        estimator="|".join(DERIVED),
    conda:
        "../envs/forebear.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(10),
    params:
        estimator="{estimator}",
        engine=engine("normalise_scores"),
    message:
        "{wildcards.study}: scores of {wildcards.stage} divided by self-influence"
    script:
        "../scripts/normalise_scores.py"


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
        bank="results/{study}/ground_truth/retrainings",
        split_heads=from_study("split_heads"),
        batch_tokens=from_study("batch_tokens"),
        max_length=from_study("max_length"),
        gpus=from_study("gpus"),
        trust_remote_code=from_study("trust_remote_code"),
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
        bank="results/{study}/ground_truth/retrainings",
        last=lambda w: study_of(w).stage_names[-1],
        split_heads=from_study("split_heads"),
        batch_tokens=from_study("batch_tokens"),
        max_length=from_study("max_length"),
        gpus=from_study("gpus"),
        trust_remote_code=from_study("trust_remote_code"),
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
        place=lambda w: study_of(w).attributed.index(w.stage),
        engine=engine("compute_trak_scores"),
    message:
        "{wildcards.study}: {wildcards.stage} scored by TRAK"
    script:
        "../scripts/compute_trak_scores.py"


rule compute_baseline_scores:
    input:
        manifest=lambda w: manifest(w.study, study_of(w).stage_names[-1]),
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
        place=lambda w: study_of(w).attributed.index(w.stage),
        batch_tokens=from_study("batch_tokens"),
        max_length=from_study("max_length"),
        seed=from_study("seed"),
        gpus=baseline_gpus,
        trust_remote_code=from_study("trust_remote_code"),
        precision=from_study("precision"),
        engine=engine("compute_baseline_scores"),
    message:
        with_needs(
            "{wildcards.study}: {wildcards.stage} scored by the baseline {wildcards.estimator}"
        )
    script:
        "../scripts/compute_baseline_scores.py"
