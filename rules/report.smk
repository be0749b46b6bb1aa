# Where the results come from, and the pages of `snakemake --report`.


rule gather_provenance:
    input:
        files=study_files,
    output:
        provenance=report(
            "results/{study}/provenance.json",
            category="Provenance",
            labels={"study": "{study}", "what": "config, versions, digests, jobs"},
            caption="captions/provenance.rst",
        ),
    log:
        "results/{study}/provenance.log",
    conda:
        "../envs/forebear.yaml"
    resources:
        mem_mb=growing(1000),
        runtime=growing(60),
    params:
        study="{study}",
        config=lambda w: study_of(w).model_dump(mode="json"),
        seeds=lambda w: {"seed": study_of(w).seed, "training_seed": study_of(w).training_seed},
        engine=engine("gather_provenance"),
    message:
        with_needs("{wildcards.study}: write down where the results come from", gpus=False)
    script:
        "../scripts/gather_provenance.py"


rule write_config:
    input:
        origin=lambda w: present(ORIGIN),
    output:
        config="results/{study}/config.yaml",
    log:
        "results/{study}/logs/write_config.log",
    localrule: True
    conda:
        "../envs/forebear.yaml"
    resources:
        mem_mb=growing(1000),
        runtime=growing(10),
    params:
        study="{study}",
        config=lambda w: study_of(w).model_dump(mode="json"),
        engine=engine("write_config"),
    message:
        with_needs("{wildcards.study}: write the config down as it counts", gpus=False)
    script:
        "../scripts/write_config.py"


rule render_pages:
    input:
        proponents="results/{study}/proponents.md",
        table="results/{study}/evaluation.csv",
        summary="results/{study}/evaluation.json",
    output:
        proponents=report(
            "results/{study}/pages/proponents.html",
            category="Attribution",
            labels={"study": "{study}", "what": "proponents of every answer"},
            caption="captions/proponents.rst",
        ),
        evaluation=report(
            "results/{study}/pages/evaluation.html",
            category="Evaluation",
            labels={"study": "{study}", "what": "every estimator in numbers"},
            caption="captions/evaluation.rst",
        ),
    log:
        "results/{study}/logs/render_pages.log",
    conda:
        "../envs/forebear.yaml"
    resources:
        mem_mb=growing(1000),
        runtime=growing(10),
    params:
        study="{study}",
        engine=engine("render_pages"),
    message:
        with_needs("{wildcards.study}: render the report's pages", gpus=False)
    script:
        "../scripts/render_pages.py"
