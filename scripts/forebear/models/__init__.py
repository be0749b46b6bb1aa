"""Checkpoints and what is done with a model: loading, training, losses, passes, answers."""
