"""forebear: which training documents made a fine-tuned language model say that?

The engine behind the workflow. It never imports snakemake. docs/architecture.md shows its rooms.
"""

__version__ = "0.1.0"
