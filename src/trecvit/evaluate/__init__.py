"""Protocols that turn a model and data into numbers."""
