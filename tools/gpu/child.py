"""One process of `scripts/gpu`: runs cases of one part and prints the outcome of each as a line."""

from __future__ import annotations

import gc
import json
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

from tools.gpu.stand_in import allow_missing

MARK = "@case "
FATAL = 70  # exit code after an error that no later case in this process would survive

Case = Callable[[], dict[str, Any]]


def main() -> None:
    """Run `child MODULE DEVICE full|small`: print facts and the names of all cases, then run those named on stdin."""
    module, device, size = sys.argv[1:]
    allow_missing("av")
    import torch

    from tools.gpu.device import Target, about

    target = Target(torch.device(device), size == "small")
    if target.is_cuda:
        torch.cuda.set_device(target.device)
        # Float32 is float32; cases that allow TF32 do so themselves.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    cases: dict[str, Case] = import_module(module).cases(target)
    _print({"about": about(target), "names": list(cases)})
    warnings.simplefilter("ignore")
    for name in json.loads(sys.stdin.readline() or "[]"):
        _print({"name": name})
        start_s = time.perf_counter()
        outcome = _outcome(cases[name])
        _print({"name": name, "outcome": outcome, "seconds": time.perf_counter() - start_s})
        if "failed" in outcome and "CUDA error" in outcome["failed"]:
            sys.exit(FATAL)
        gc.collect()
        if "torch._dynamo" in sys.modules:  # importing it takes seconds
            torch._dynamo.reset()
        if target.is_cuda:
            torch.cuda.empty_cache()


def _outcome(case: Case) -> dict[str, Any]:
    try:
        result = case()
        failed = result.pop("failed", None)
        return {"result": result} | ({"failed": failed} if failed else {})
    except Exception as exc:  # one case must not cost the others
        where = traceback.extract_tb(exc.__traceback__)[-1]
        reason = " ".join(f"{type(exc).__name__}: {exc}".split())[:600]
        return {"failed": f"{reason} ({where.filename.rpartition('/')[2]}:{where.lineno})"}


def _print(content: dict[str, Any]) -> None:
    print(MARK + json.dumps(content), flush=True)


if __name__ == "__main__":
    main()
