"""Reproduction of the paper's comparisons, run from a checkout: `scripts/paper --help`."""
