"""One training loop, its recipes and its run folder."""
