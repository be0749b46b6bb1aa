"""Figures: pure functions from tables to matplotlib figures."""
