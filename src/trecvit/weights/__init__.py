"""Weights in and out: our folders, the original authors' files, and the zoo."""
