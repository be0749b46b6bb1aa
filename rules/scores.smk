# Scores of every document for every query, and what divides them.
from forebear.estimators import ESTIMATORS
from forebear.workflow.chain_points import columns_of

# One pass over a stage's documents serves all estimators that look at them at the same model, and
# writes one file. The job keeps what it has finished: one more estimator leaves the others' scores as they are.


rule compute_pairwise_scores:
    input:
        manifest=lambda w: manifest(w.study, w.model),
        records=lambda w: scored_records(w.study, w.stage),
        last=lambda w: manifest(w.study, study_of(w).stage_names[-1]),
        queries="results/{study}/data/queries.jsonl",
        columns=lambda w: [
            first_columns_file(w.study, w.stage, columns) for columns in columns_of(served(w))
        ],
    output:
        scores=temp("results/{study}/scores/{stage}/at_{model}/{shard}-of-{shards}.h5"),
    log:
        "results/{study}/logs/compute_pairwise_scores/{stage}_at_{model}/{shard}-of-{shards}.log",
    conda:
        "../envs/forebear.yaml"
    threads: threads_of
    resources:
        mem_mb=memory(ASKED_MB["scores"]),
        runtime=growing(240),
        gpu=from_study("gpus"),
    params:
        study="{study}",
        shard=shard_of,
        estimators=served,
        columns=lambda w: columns_of(served(w)),
        loading=loading("split_heads", "precision"),
        batch_tokens=from_study("batch_tokens"),
        engine=engine("compute_pairwise_scores"),
    message:
        with_needs(
            "{wildcards.study}: score the documents of {wildcards.stage} at the {wildcards.model} model, shard {wildcards.shard} of {wildcards.shards}",
        )
    script:
        "../scripts/compute_pairwise_scores.py"


rule gather_scores:
    input:
        shards=shards_of("scores/{stage}/at_{model}"),
        manifest=lambda w: manifest(w.study, w.model),
        records=lambda w: scored_records(w.study, w.stage),
    output:
        rows="results/{study}/scores/{stage}/at_{model}.h5",
    log:
        "results/{study}/logs/gather_scores/{stage}_at_{model}.log",
    conda:
        "../envs/forebear.yaml"
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),
    params:
        kind="scores",
        engine=engine("gather_scores"),
    message:
        with_needs(
            "{wildcards.study}: put the shards of the scores of {wildcards.stage} at the {wildcards.model} model together",
            gpus=False,
        )
    script:
        "../scripts/gather_scores.py"


rule rescore_documents:
    input:
        first="results/{study}/scores/{stage}/at_{model}.h5",
        manifest=lambda w: manifest(w.study, w.model),
        records=lambda w: scored_records(w.study, w.stage),
        last=lambda w: manifest(w.study, study_of(w).stage_names[-1]),
        queries="results/{study}/data/queries.jsonl",
        columns=lambda w: [
            columns_file(w.study, w.stage, columns) for columns in columns_of(served(w))
        ],
        compressed=lambda w: [
            first_columns_file(w.study, w.stage, columns)
            for columns in columns_of(served(w))
            if is_compressed(w.study, columns)
        ],
    output:
        scores="results/{study}/scores/{stage}/rescored_at_{model}.h5",
    log:
        "results/{study}/logs/rescore_documents/{stage}_at_{model}.log",
    conda:
        "../envs/forebear.yaml"
    threads: threads_of
    resources:
        mem_mb=memory(ASKED_MB["scores"]),
        runtime=growing(240),
        gpu=from_study("gpus"),
    params:
        study="{study}",
        estimators=served,
        columns=lambda w: columns_of(served(w)),
        rescore=lambda w: study_of(w).compression.rescore,
        loading=loading("split_heads", "precision"),
        batch_tokens=from_study("batch_tokens"),
        engine=engine("rescore_documents"),
    message:
        with_needs(
            "{wildcards.study}: score the outermost documents of {wildcards.stage} at the {wildcards.model} model again, with whole queries",
        )
    script:
        "../scripts/rescore_documents.py"


rule compute_self_influence:
    input:
        manifest=lambda w: manifest(w.study, w.stage),
        records=lambda w: scored_records(w.study, w.stage),
        fitted="results/{study}/data/{stage}.jsonl",
        eigenbasis="results/{study}/factors/{stage}/eigenbasis.h5",
        eigenvalues="results/{study}/factors/{stage}/eigenvalues.h5",
    output:
        values=temp("results/{study}/self_influence/{stage}/{shard}-of-{shards}.h5"),
    log:
        "results/{study}/logs/compute_self_influence/{stage}/{shard}-of-{shards}.log",
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
        with_needs(
            "{wildcards.study}: self-influence of the documents of {wildcards.stage}, shard {wildcards.shard} of {wildcards.shards}"
        )
    script:
        "../scripts/compute_self_influence.py"


use rule gather_scores as gather_self_influence with:
    input:
        shards=shards_of("self_influence/{stage}"),
        manifest=lambda w: manifest(w.study, w.stage),
        records=lambda w: scored_records(w.study, w.stage),
    output:
        rows="results/{study}/self_influence/{stage}.h5",
    log:
        "results/{study}/logs/gather_self_influence/{stage}.log",
    params:
        kind="self-influence",
    message:
        with_needs(
            "{wildcards.study}: put the shards of the self-influence of {wildcards.stage} together",
            gpus=False,
        )


rule normalise_scores:
    input:
        scores=lambda w: scores_file(w.study, w.stage, ESTIMATORS[w.estimator].base),
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
