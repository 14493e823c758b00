"""Evaluation protocols: a model and data in, metrics out."""
