"""The figure and the table: LDS over the dampings, chosen on one half of the queries, reported on the other."""

from forebear.jobs import start

start(snakemake)

from forebear.bank import read_bank
from forebear.evaluation import Bank, sweep_table
from forebear.heatmaps import plot_damping
from forebear.plots import save_figure
from forebear.sweep_files import read_sweep
from forebear.writing import atomic_path

params, files = snakemake.params, snakemake.input
predictions, grid = read_sweep(files.predictions)
bank = Bank(None, *read_bank(files.bank)).with_seed(params.seed)
table = sweep_table(predictions[..., bank.subset, :], grid, -bank.measurements)
with atomic_path(snakemake.output.table) as path:
    table.to_csv(path, index=False, float_format="%.6g")
with atomic_path(snakemake.output.figure) as path:
    save_figure(plot_damping(table, params.study), path)
