"""forebear: which training documents made a fine-tuned language model say that?

The engine behind the workflow. It never imports snakemake; each room imports only from
rooms to its left:

errors → config → store → datasets → training → blocks → capture → kronecker → chain →
scoring → baselines → ground_truth → evaluation → plots
"""

__version__ = "0.1.0"
