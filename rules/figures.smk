rule plot_spearman:
    input:
        table=evaluation_with_lds,
        summary="results/{study}/evaluation.json",
    output:
        figure="results/{study}/spearman.png",
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


# The figure of the study that the config names.
rule publish_figure:
    input:
        figure=f"results/{CONFIG.study}/spearman.png",
    output:
        figure="results/figures/spearman.png",
    log:
        "results/figures/publish_figure.log",
    localrule: True
    conda:
        "../envs/forebear.yaml"
    params:
        study=CONFIG.study,
    message:
        "publish the figure of {params.study}"
    shell:
        "cp {input.figure} {output.figure} > {log} 2>&1"
