"""The figure and the table: LDS over the dampings, chosen on one half of the queries, reported on the other."""

from forebear.runtime.job import start

start(snakemake)

from forebear.evaluation.damping_table import sweep_table
from forebear.evaluation.files import read_sweep
from forebear.figures.damping import plot_damping
from forebear.figures.style import save_figure
from forebear.ground_truth.bank import Bank
from forebear.ground_truth.files import read_bank
from forebear.runtime.atomic import atomic_path

params, files = snakemake.params, snakemake.input
predictions, grid = read_sweep(files.predictions)
bank = Bank(None, *read_bank(files.bank)).with_seed(params.seed)
table = sweep_table(predictions[..., bank.subset, :], grid, -bank.measurements)
with atomic_path(snakemake.output.table) as path:
    table.to_csv(path, index=False, float_format="%.6g")
with atomic_path(snakemake.output.figure) as path:
    save_figure(plot_damping(table, params.study), path)
