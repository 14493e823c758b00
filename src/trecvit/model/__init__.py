"""Clip to features to outputs. Knows no file, no training loop and no command line."""
