"""Scores of documents for queries, by every estimator."""
