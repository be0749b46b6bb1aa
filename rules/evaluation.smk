# How well every estimator predicts retraining, finds known sources, and what it costs.


rule evaluate:
    input:
        scores=lambda w: [f for e in study_of(w).computed for f in scores_files(w.study, e)],
        overhead=lambda w: sorted(
            {f for e in study_of(w).computed for f in overhead_files(w.study, e)}
        ),
        records=attributed_records,
        queries="results/{study}/data/queries.jsonl",
        subsets=ground_truth("subsets"),
        bank=ground_truth("bank"),
        answers="results/{study}/queries/answers.jsonl",
    output:
        table="results/{study}/evaluation.csv",
        summary="results/{study}/evaluation.json",
    log:
        "results/{study}/logs/evaluate.log",
    conda:
        "../envs/forebear.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(30),
    params:
        estimators=from_study("computed"),
        undefined=from_study("undefined"),
        stages=from_study("attributed"),
        last=lambda w: study_of(w).stage_names[-1],
        overhead=lambda w: overheads(w.study, study_of(w).computed),
        seed=from_study("training_seed"),
        engine=engine("evaluate"),
    message:
        with_needs("{wildcards.study}: evaluate the estimators", gpus=False)
    script:
        "../scripts/evaluate.py"


rule compute_damping_sweep:
    input:
        gradients="results/{study}/queries/gradients.h5",
        eigenbasis=lambda w: [f"results/{w.study}/factors/{p}/eigenbasis.h5" for p in chain_of(w)],
        eigenvalues=lambda w: [f"results/{w.study}/factors/{p}/eigenvalues.h5" for p in chain_of(w)],
        manifests=lambda w: [manifest(w.study, p) for p in chain_of(w)],
        records=lambda w: [f"results/{w.study}/data/{p}.jsonl" for p in chain_of(w)],
        last=lambda w: manifest(w.study, study_of(w).stage_names[-1]),
        queries="results/{study}/data/queries.jsonl",
        subsets="results/{study}/ground_truth/subsets.h5",
    output:
        predictions="results/{study}/sweep/{stage}.h5",
    log:
        "results/{study}/logs/compute_damping_sweep/{stage}.log",
    conda:
        "../envs/forebear.yaml"
    threads: threads_of
    resources:
        mem_mb=memory(4000),
        runtime=growing(120),
        gpu=from_study("gpus"),
    params:
        study="{study}",
        stage="{stage}",
        grid=lambda w: study_of(w).sweep.model_dump(),
        links=lambda w: [link_of(w, point) for point in chain_of(w)],
        loading=loading("split_heads"),
        batch_tokens=from_study("batch_tokens"),
        engine=engine("compute_damping_sweep"),
    message:
        with_needs("{wildcards.study}: predict the retrainings for many dampings", gpus=False)
    script:
        "../scripts/compute_damping_sweep.py"


rule list_proponents:
    input:
        scores=lambda w: scores_files(w.study, study_of(w).computed[0]),
        records=attributed_records,
        queries="results/{study}/data/queries.jsonl",
        answers="results/{study}/queries/answers.jsonl",
        overhead=lambda w: overhead_files(w.study, study_of(w).computed[0]),
    output:
        page="results/{study}/proponents.md",
    log:
        "results/{study}/logs/list_proponents.log",
    conda:
        "../envs/forebear.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(10),
    params:
        study="{study}",
        estimator=lambda w: study_of(w).computed[0],
        stages=from_study("attributed"),
        last=lambda w: study_of(w).stage_names[-1],
        top=from_study("top"),
        engine=engine("list_proponents"),
    message:
        with_needs("{wildcards.study}: list the documents for and against every answer", gpus=False)
    script:
        "../scripts/list_proponents.py"


rule compare_with_reference:
    input:
        scores=lambda w: [f for e in compared(w.study) for f in scores_files(w.study, e)],
        reference=lambda w: scores_files(w.study, "reference"),
        check=lambda w: scores_files(w.study, "reference-check"),
        reference_columns=lambda w: columns_file(w.study, study_of(w).attributed[0], "reference"),
        check_columns=lambda w: columns_file(w.study, study_of(w).attributed[0], "reference-check"),
        overhead=lambda w: sorted(
            {f for e in [*compared(w.study), "reference"] for f in overhead_files(w.study, e)}
        ),
        records=lambda w: scored_records(w.study, study_of(w).attributed[0]),
        queries="results/{study}/data/queries.jsonl",
    output:
        table="results/{study}/agreement.csv",
        summary="results/{study}/agreement.json",
    log:
        "results/{study}/logs/compare_with_reference.log",
    conda:
        "../envs/forebear.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(10),
    params:
        estimators=lambda w: compared(w.study),
        overhead=lambda w: overheads(w.study, [*compared(w.study), "reference"]),
        seed=from_study("seed"),
        engine=engine("compare_with_reference"),
    message:
        with_needs(
            "{wildcards.study}: compare the estimators with the converged reference", gpus=False
        )
    script:
        "../scripts/compare_with_reference.py"


rule measure_costs:
    input:
        records=lambda w: f"results/{w.study}/data/{study_of(w).attributed[0]}.jsonl",
        queries="results/{study}/data/queries.jsonl",
    output:
        table="results/{study}/cost_by_size.csv",
        summary="results/{study}/cost_by_size.json",
    log:
        "results/{study}/logs/measure_costs.log",
    conda:
        "../envs/forebear.yaml"
    threads: threads_of
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),
    params:
        model=from_study("model"),
        cost=sized,
        split_heads=from_study("split_heads"),
        batch_tokens=from_study("batch_tokens"),
        max_length=from_study("max_length"),
        seed=from_study("training_seed"),
        engine=engine("measure_costs"),
    message:
        with_needs(
            "{wildcards.study}: time fitting and scoring at models of several sizes", gpus=False
        )
    script:
        "../scripts/measure_costs.py"
