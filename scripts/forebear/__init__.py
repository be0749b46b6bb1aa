"""forebear: which training documents made a fine-tuned language model say that?

The engine behind the workflow. It never imports snakemake, and data flows one way:

config → records, sequences, batches, training (stages) → blocks, capture, factors, kronecker (curvature) →
chain (preconditioned queries), solved_chain (the same without EK-FAC, by gauss_newton and
solvers) → scoring, baselines → bank, retraining (ground truth) → evaluation → plots,
reports, pages, provenance; store, writing, manifests and the rooms named *_files are the
files between them; jobs and devices are what every script starts with.
"""

__version__ = "0.1.0"
