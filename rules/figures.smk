rule plot_spearman:
    input:
        table=evaluation_with_lds,
        summary="results/{study}/evaluation.json",
    output:
        figure=report(
            "results/{study}/spearman.png",
            category="Evaluation",
            labels={"study": "{study}", "what": "quality against cost"},
            caption="captions/spearman.rst",
        ),
    log:
        "results/{study}/logs/plot_spearman.log",
    conda:
        "../envs/forebear.yaml"
    resources:
        mem_mb=growing(1000),
        runtime=growing(10),
    params:
        study="{study}",
        engine=engine("plot_spearman"),
    message:
        "{wildcards.study}: plot quality against cost"
    script:
        "../scripts/plot_spearman.py"


rule plot_damping:
    input:
        predictions=lambda w: f"results/{w.study}/sweep/{study_of(w).attributed[0]}.h5",
        bank="results/{study}/ground_truth/bank.h5",
    output:
        figure=report(
            "results/{study}/damping.png",
            category="Evaluation",
            labels={"study": "{study}", "what": "quality over the dampings"},
            caption="captions/damping.rst",
        ),
        table="results/{study}/damping.csv",
    log:
        "results/{study}/logs/plot_damping.log",
    conda:
        "../envs/forebear.yaml"
    resources:
        mem_mb=growing(1000),
        runtime=growing(10),
    params:
        study="{study}",
        seed=from_study("training_seed"),
        engine=engine("plot_damping"),
    message:
        "{wildcards.study}: plot LDS over the dampings"
    script:
        "../scripts/plot_damping.py"


rule plot_agreement:
    input:
        table="results/{study}/agreement.csv",
        summary="results/{study}/agreement.json",
    output:
        figure=report(
            "results/{study}/spearman_cg.png",
            category="Evaluation",
            labels={"study": "{study}", "what": "agreement with the converged reference"},
            caption="captions/spearman_cg.rst",
        ),
    log:
        "results/{study}/logs/plot_agreement.log",
    conda:
        "../envs/forebear.yaml"
    resources:
        mem_mb=growing(1000),
        runtime=growing(10),
    params:
        study="{study}",
        engine=engine("plot_agreement"),
    message:
        "{wildcards.study}: plot agreement with the converged reference"
    script:
        "../scripts/plot_agreement.py"


rule plot_costs:
    input:
        table="results/{study}/cost_by_size.csv",
        summary="results/{study}/cost_by_size.json",
    output:
        figure=report(
            "results/{study}/cost_by_size.png",
            category="Evaluation",
            labels={"study": "{study}", "what": "cost against model size"},
            caption="captions/cost_by_size.rst",
        ),
    log:
        "results/{study}/logs/plot_costs.log",
    conda:
        "../envs/forebear.yaml"
    resources:
        mem_mb=growing(1000),
        runtime=growing(10),
    params:
        study="{study}",
        engine=engine("plot_costs"),
    message:
        "{wildcards.study}: plot cost against model size"
    script:
        "../scripts/plot_costs.py"


# The figures of the study that the config names.
rule publish_figure:
    input:
        figure=f"results/{CONFIG.study}/{{figure}}.png",
    output:
        figure="results/figures/{figure}.png",
    log:
        "results/figures/{figure}.log",
    wildcard_constraints:
        figure="spearman|damping|spearman_cg|cost_by_size",
    localrule: True
    conda:
        "../envs/forebear.yaml"
    params:
        study=CONFIG.study,
        figure="{figure}",
        engine=engine("publish_figure"),
    message:
        "publish the figure {wildcards.figure} of {params.study}"
    script:
        "../scripts/publish_figure.py"
