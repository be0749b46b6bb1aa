rule plot_spearman:
    message:
        "{wildcards.study}: plot quality against cost"
    input:
        table="results/{study}/evaluation.csv",
        summary="results/{study}/evaluation.json",
    output:
        figure="results/{study}/spearman.png",
    log:
        "results/{study}/logs/plot_spearman.log",
    params:
        study="{study}",
        engine=engine("plot_spearman"),
    resources:
        mem_mb=mem_mb(1000),
        runtime=10,
    script:
        "../scripts/plot_spearman.py"


# The figure of the study that the config names.
rule publish_figure:
    message:
        "publish the figure of {params.study}"
    input:
        figure=f"results/{CONFIG.study}/spearman.png",
    output:
        figure="results/figures/spearman.png",
    log:
        "results/figures/publish_figure.log",
    params:
        study=CONFIG.study,
    localrule: True
    shell:
        "cp {input.figure} {output.figure} > {log} 2>&1"
