"""Fast inference: packed and fused layers, compiled engines, OpenVINO, exported models, the number of threads."""
