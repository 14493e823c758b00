"""Entry points of PyTorch Hub: `torch.hub.load("OWNER/trecvit", "load", "motions")`, or a checkout's folder."""

from __future__ import annotations

import sys
from pathlib import Path

dependencies = ["torch", "numpy", "safetensors", "huggingface_hub", "filelock", "jaxtyping", "av", "PIL", "yaml"]

_SOURCE = str(Path(__file__).parent / "src")
if _SOURCE not in sys.path:
    sys.path.insert(0, _SOURCE)

from trecvit import create_model, load  # noqa: E402  the package of this checkout

__all__ = ["create_model", "load"]
