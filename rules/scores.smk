# Scores of every document for every query, and what divides them.

from forebear.estimators import ESTIMATORS
from forebear.workflow.chain_points import columns_of

# One pass over a stage's documents serves all estimators that look at them at the same model;
# it writes one file an estimator, so there is one rule for each study, stage and model. The job
# keeps what it has finished: one more estimator leaves those of the others as they are. Where
# shards share the pass, there is such a file for each shard.
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
                whole_or_shard(study, first_scores(study, attributed, e), "h5") for e in estimators
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
            mem_mb=memory(ASKED_MB["scores"], study),
            runtime=growing(240),
            gpu=CONFIG.studies[study].gpus,
        params:
            study=study,
            shard=shard_of,
            estimators=estimators,
            columns=columns_of(estimators),
            loading=lambda w, study=study: loading_of(study, "split_heads", "precision"),
            batch_tokens=CONFIG.studies[study].batch_tokens,
            engine=engine("compute_pairwise_scores"),
        message:
            with_needs(f"{study}: score the documents of {attributed} at the {stage} model{note}")
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
            scores=[f"results/{study}/scores/{attributed}/{e}.h5" for e in estimators],
        log:
            f"results/{study}/logs/rescore_documents/{attributed}_at_{stage}.log",
        conda:
            "../envs/forebear.yaml"
        threads: CONFIG.studies[study].threads
        resources:
            mem_mb=memory(ASKED_MB["scores"], study),
            runtime=growing(240),
            gpu=CONFIG.studies[study].gpus,
        params:
            study=study,
            estimators=estimators,
            columns=columns_of(estimators),
            rescore=CONFIG.studies[study].compression.rescore,
            loading=lambda w, study=study: loading_of(study, "split_heads", "precision"),
            batch_tokens=CONFIG.studies[study].batch_tokens,
            engine=engine("rescore_documents"),
        message:
            with_needs(
                f"{study}: score the outermost documents of {attributed} at the {stage} model again, with whole queries"
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
        mem_mb=memory(ASKED_MB["self-influence"]),
        runtime=growing(120),
        gpu=from_study("gpus"),
    params:
        study="{study}",
        link=lambda w: link_of(w, w.stage),
        shard=shard_of,
        loading=loading("split_heads", "precision"),
        batch_tokens=from_study("batch_tokens"),
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
