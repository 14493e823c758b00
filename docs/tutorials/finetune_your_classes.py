# %% [markdown]
# # Fine-tune on your own classes
#
# *8 minutes to read.* You have some videos of each of your classes. One folder per class is all that is needed:
#
# ```
# my_videos/
#   train/
#     circling/   0.mp4  1.mp4 …
#     shaking/    0.mp4  1.mp4 …
#   val/
#     circling/   …
#     shaking/    …
# ```

# %%
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

import trecvit
from trecvit.runtime.predict import classify
from trecvit.video.encode import VideoWriter

DATA, RUN = Path("my_videos"), Path("runs/mine")
CLIPS = {"train": 24, "val": 12}  # videos per class
EPOCHS = 12

# %% [markdown]
# ## Videos to try it with
#
# A coloured square that circles or shakes on a noisy background. Replace this cell by your own folders.

# %%
rng = np.random.default_rng(0)
for split, count in CLIPS.items():
    for name in ("circling", "shaking"):
        folder = DATA / split / name
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            frames = rng.integers(0, 60, (8, 64, 64, 3), np.uint8)
            angle = 2 * np.pi * (rng.random() + np.arange(8) / 8)
            x, y = 32 + 16 * np.cos(angle), 32 + 16 * np.sin(angle)
            if name == "shaking":
                x, y = 32 + 8 * (-1.0) ** np.arange(8) + rng.integers(-8, 8), np.full(8, rng.integers(20, 44))
            colour = rng.integers(120, 256, 3)
            with VideoWriter(folder / f"{number}.mp4", 6) as writer:
                for frame, left, top in zip(frames, x.astype(int), y.astype(int), strict=True):
                    frame[top - 5 : top + 5, left - 5 : left + 5] = colour
                    writer.write(frame)

# %% [markdown]
# ## Check, train
#
# `data check` decodes every video once and names those that are damaged or too short. `finetune` starts from the
# bundled model; `--model` takes any other classifier.

# %%
trecvit_command = [sys.executable, "-m", "trecvit"]
subprocess.run([*trecvit_command, "data", "check", DATA / "train", "--to", "checked"], check=True)
options = ["--epochs", str(EPOCHS), "--workers", "0"]
done = subprocess.run(
    [*trecvit_command, "finetune", "--data", DATA, "--to", RUN, *options], check=True, stdout=subprocess.PIPE, text=True
)
print("\n".join(done.stdout.splitlines()[-5:]))

# %% [markdown]
# The last lines are the result: top-1 on the validation videos (chance is 50 % here), the best during training, and
# the pictures. `curves.png` shows whether to train longer (the curves still rise) or to find more videos (training
# accuracy is far above the validation's):
#
# ![Loss and accuracy of a fine-tuned model and of one from random weights](../images/finetune.png)
#
# These are the curves of [another example](../training.md#fine-tune-on-your-own-classes), six motions fine-tuned and
# learnt from random weights.
#
# Ctrl-C stops a run; the same command resumes it.
#
# ## Use it

# %%
result = json.loads((RUN / "evaluation" / "result.json").read_text(encoding="utf-8"))
print(f"top-1 {result['top1']:.0%} of {result['good']} validation videos")
model = trecvit.load(RUN / "best")
video = DATA / "val" / "circling" / "0.mp4"
print(classify(model, video).labels[0])

# %% [markdown]
# ```
# trecvit classify *.mp4 --model runs/mine/best
# trecvit stream camera:0 --model runs/mine/best
# trecvit push runs/mine you/your-model              # to the Hugging Face Hub, with a card of these figures
# ```
#
# **Next:** [read the result](evaluate_and_read_the_result.md) · [all forms of data sets](../data.md) ·
# [training in depth](../training.md)
