"""Real data sets: manifests, clips, checks, shards and annotated tracks."""
