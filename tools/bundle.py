"""Bundling of a trained run with the package: `scripts/bundle NAME RECIPE RUN_FOLDER [model|best]`.

Weights are stored in float16, or in 8 bits with `--int8-step`, in `src/trecvit/weights/NAME`; the run's log,
description and test result are copied to `benchmarks/training/`. Example:
`scripts/bundle motions world_files runs/world`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch

import trecvit


def bundle(
    name: str,
    recipe: str,
    run: Path,
    which: str = "model",
    *,
    int8_step: float = 0.0,
    nothing_logit: float | None = None,
    rely_on_flow: float = 0.0,
    root: Path = Path(),
) -> Path:
    """Copy a run's weights and records into a checkout; return the folder of weights.

    Args:
        name: The bundled model's name.
        recipe: Name of the recipe that trained it.
        run: The run folder.
        which: "model" for the final weights, or "best" for those with the best validation result during training.
        int8_step: See `Pretrained.save`; 0 for float16.
        nothing_logit: Constant that replaces the logit of the last class, "nothing of these": it is the answer where no
            other class has more (maximum logit, arXiv:1911.11132). None: the trained one stays.
        rely_on_flow: See `LocalTracker.rely_on_flow`.
        root: The checkout.
    """
    model: Any = trecvit.load(run / which).to(torch.float16)
    model.provenance |= {"licence": "Apache-2.0", "recipe": f"src/trecvit/recipes/{recipe}.yaml"}
    if nothing_logit is not None:
        classifier = model.head.classifier
        with torch.no_grad():
            classifier.weight[-1] = 0.0
            classifier.bias[-1] = nothing_logit
        model.provenance["nothing"] = f"{model.labels[-1]}: constant logit {nothing_logit:g}"
    if rely_on_flow:
        model.rely_on_flow(rely_on_flow)
        model.provenance["choice"] = f"relies on flow by {rely_on_flow:g}, chosen on validation clips"
    folder = model.save(root / "src/trecvit/weights" / name, int8_step=int8_step)
    records = root / "benchmarks/training"
    for file in ("metrics.jsonl", "run.json"):
        shutil.copyfile(run / file, records / f"{recipe}.{file}")
    result = records / f"{recipe}.result.json"
    if which == "best":
        tests = map(json.loads, (run / "validation.jsonl").read_text(encoding="utf-8").splitlines())
        best = max(tests, key=lambda test: test.get("average_jaccard", test.get("top1")))
        result.write_text(json.dumps(best, indent=2) + "\n", encoding="utf-8")
    elif (run / "evaluation" / "result.json").exists():  # a run on all data has none
        shutil.copyfile(run / "evaluation" / "result.json", result)
    return Path(folder)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="scripts/bundle", description="Bundle a trained run with the package.")
    parser.add_argument("name", help="name of the bundled model, such as motions")
    parser.add_argument("recipe", help="name of the recipe that trained it, such as world_files")
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("which", nargs="?", default="model", choices=("model", "best"), help="final or best weights")
    parser.add_argument("--int8-step", type=float, default=0.0, help="store matrices in 8 bits, see Pretrained.save")
    parser.add_argument("--nothing-logit", type=float, help='constant logit of the last class, "nothing of these"')
    parser.add_argument("--rely-on-flow", type=float, default=0.0, help="of a LocalTracker, see its rely_on_flow")
    args = parser.parse_args()
    options = {
        "int8_step": args.int8_step,
        "nothing_logit": args.nothing_logit,
        "rely_on_flow": args.rely_on_flow,
    }
    print(bundle(args.name, args.recipe, args.run, args.which, **options))


if __name__ == "__main__":
    main()
