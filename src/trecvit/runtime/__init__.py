"""Inference on real sources: whole videos, streams, tracked points."""
