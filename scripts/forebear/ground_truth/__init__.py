"""Retraining on subsets of the documents: what every estimator is judged by."""
