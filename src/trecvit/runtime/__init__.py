"""Everything that runs a trained model on real sources."""
