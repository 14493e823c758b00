"""Fast inference: fused layers, compiled passes, OpenVINO, exported models, and the number of threads."""
