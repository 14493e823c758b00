"""The paper's comparisons, run from a checkout: `scripts/paper --help`."""
