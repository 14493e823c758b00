# %% [markdown]
# # Train a point tracker
#
# *8 minutes to read.* The recipe `track_world` trains a small tracker on scenes that are rendered while training:
# every point's track is known exactly, and no files are needed. The whole training takes more than an hour on two CPU
# cores; here are its first steps, so that you know each part.

# %%
import json
import subprocess
import sys
from pathlib import Path

import torch

import trecvit

RUN = Path("runs/tracker")
STEPS = 40
BATCH = 4

# %% [markdown]
# ## A recipe is one file; any value can be replaced
#
# `section.key=value` on the command line replaces a value. A misspelt key is an error with the nearest name.

# %%
changes = [
    f"optimisation.num_steps={STEPS}",
    f"optimisation.batch_size={BATCH}",
    f"optimisation.warmup_steps={STEPS // 4}",
    f"tracks.easy_steps={STEPS}",
    f"tracks.validate_every={STEPS}",
    "tracks.validation_scenes=2",
    "tracks.num_points=16",
    "log_every=10",
    "checkpoint_every=20",
]
command = [sys.executable, "-m", "trecvit", "train", "track_world", "--to", RUN, *changes]
done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
print("\n".join(done.stdout.splitlines()[-4:]))

# %% [markdown]
# The result is TAP-Vid's **average Jaccard** on held-out scenes: of the points that are visible or predicted to be,
# the share that is both and within 1, 2, 4, 8 or 16 pixels, averaged. After so few steps it is near that of points
# that stay in place.
#
# The run folder has the curves, the log and the recipe as it was resolved:

# %%
for line in (RUN / "validation.jsonl").read_text(encoding="utf-8").splitlines():
    test = json.loads(line)
    print(f"step {test['step']}: AJ {test['average_jaccard']:.1%}, occlusion accuracy {test['occlusion_accuracy']:.1%}")

# %% [markdown]
# ## Use it like any tracker

# %%
tracker = trecvit.load(RUN / "model")
video = torch.randint(0, 256, (1, 8, 3, 96, 96), dtype=torch.uint8)
out = tracker(video, torch.tensor([[[0, 10.0, 20.0]]]))  # frame, y, x
print(out.points_xy.shape)  # [B, Q, T, 2]

# %% [markdown]
# ## Longer, better
#
# ```
# trecvit train track_world --to runs/tracker                       # all 3,000 steps
# trecvit train track_world_long --to runs/long start.weights=runs/tracker/model
# trecvit eval points track_world --model runs/long/model --scenes 20 --save points.json
# ```
#
# **Next:** [what the bundled tracker reaches, and how](../tracking.md#the-bundled-tracker) ·
# [your own tracks as training data](../training.md#trackers)
