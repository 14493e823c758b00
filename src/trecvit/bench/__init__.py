"""Latency, throughput and memory of models, trackers and training steps."""
