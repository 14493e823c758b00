# %% [markdown]
# # Evaluate a model and read the result
#
# *5 minutes.* How good is a classifier on your labelled videos, and which classes does it confuse?

# %%
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from trecvit.evaluate.scores import Scores, figures
from trecvit.synthetic.world import LABELS, World, WorldConfig
from trecvit.video.encode import VideoWriter

DATA, RESULTS = Path("labelled"), Path("results")
PER_CLASS = 4

# %% [markdown]
# ## Labelled videos
#
# A list with a path and a class number in each line, and the names of the classes in their order beside it: here
# rendered scenes of the 18 motions that the bundled model knows. There are [other forms](../data.md), such as a folder
# per class.

# %%
world = World(WorldConfig(num_frames=8, image_size=(64, 64)), seed=77)
DATA.mkdir(exist_ok=True)
lines = []
for number in range(PER_CLASS * len(LABELS)):
    frames, label = world.clip(number)
    with VideoWriter(DATA / f"{number}.mp4", 6) as writer:
        for frame in frames:
            writer.write(frame)
    lines.append(f"{number}.mp4 {label}\n")
(DATA / "list.txt").write_text("".join(lines), encoding="utf-8")
(DATA / "labels.txt").write_text("\n".join(LABELS), encoding="utf-8")

# %%
command = [sys.executable, "-m", "trecvit", "eval", "videos", DATA / "list.txt", "--to", RESULTS, "--model", "motions"]
done = subprocess.run([*command, "--clips", "1", "--crops", "1"], check=True, stdout=subprocess.PIPE, text=True)
print(done.stdout)

# %% [markdown]
# - **top-1**: share of videos whose most probable class is the right one; **top-5**: whose right class is among five.
# - **mean class accuracy**: each class counts the same, however many videos it has.
# - **calibration error**: how far stated probabilities are from the share that is right; 0 is best.
# - **failed**: unreadable videos. They are named, and never replaced by others.
#
# ## The confusion matrix
#
# A row per true class, a column per predicted class. A mark off the diagonal is a confusion of two classes:
#
# ![Confusion matrix](../images/tutorial_confusion.png)
#
# ## The same as numbers

# %%
result = json.loads((RESULTS / "result.json").read_text(encoding="utf-8"))
for entry in sorted(result["per_class"], key=lambda entry: entry["top1"])[:3]:
    print(f"{entry['class']}: {entry['top1']:.0%}, most taken for {entry['most_taken_for'] or 'no other'}")

# %% [markdown]
# `scores.npz` holds every video's probabilities, so any other figure is a few lines, without running the model again.
# How sure is it when it is wrong?

# %%
scores = Scores.load(RESULTS / "scores.npz")
is_right = scores.probs.argmax(axis=1) == scores.classes
confidence = scores.probs.max(axis=1)
print(f"top-1 {figures(scores)['top1']:.1%}, sure of right answers: {confidence[is_right].mean():.0%}")
if not is_right.all():
    worst = np.argmax(np.where(is_right, 0, confidence))
    print(f"most sure and wrong: {scores.names[worst]}, {confidence[worst]:.0%}")

# %% [markdown]
# Choose models and settings by validation videos, and look at test videos once, at the end.
#
# **Next:** [more protocols: early recognition, probes, trackers](../evaluation.md)
