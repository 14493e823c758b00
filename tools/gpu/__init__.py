"""Everything to find out about the package on a GPU, in one command: `scripts/gpu`."""
