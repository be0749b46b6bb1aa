"""How well scores predict retraining and find known sources, and what they cost."""
