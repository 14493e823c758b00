# %% [markdown]
# # Classify a folder of videos
#
# *5 minutes.* You have a folder of videos and want a table: for each video its most probable classes. The bundled model
# `motions` needs no download; it names 18 simple motions. For real actions take a trained model of the
# [model zoo](../zoo.md), or [fine-tune your own](finetune_your_classes.md).
#
# Install the package first ([install](../install.md)).

# %%
from pathlib import Path

import trecvit
from trecvit.errors import VideoError
from trecvit.runtime.demo import render_scenes
from trecvit.runtime.predict import classify

FOLDER = Path("videos")
NUM_VIDEOS = 3

# %% [markdown]
# No videos at hand? These are rendered: nine scenes each, with the motion that each scene shows.

# %%
FOLDER.mkdir(exist_ok=True)
for number in range(NUM_VIDEOS):
    motions = render_scenes(FOLDER / f"scenes{number}.mp4", seed=number)
    print(f"scenes{number}.mp4 shows", ", ".join(motions))

# %% [markdown]
# ## One line per video
#
# `classify` reads four clips, evenly spaced, each as long as the model's training clips, and averages their
# probabilities. Frames are cropped to the centre and scaled; sizes, frame rates and formats may differ.

# %%
model = trecvit.load("motions")
rows = []
for path in sorted(FOLDER.iterdir()):
    try:
        prediction = classify(model, path, num_clips=4, top_k=3)
    except VideoError as error:
        print(f"skipped: {error}")
        continue
    rows.append((path.name, prediction))
    best = ", ".join(f"{label} {prob:.0%}" for label, prob in zip(prediction.labels, prediction.probs, strict=True))
    print(f"{path.name}: {best}")

# %% [markdown]
# A damaged file raises `VideoError` with its name and the reason: it is never skipped in silence.
#
# A video of several scenes gets one answer for all of them. To know what happens *when*,
# [stream it](stream_a_camera.md).
#
# ## Save the table

# %%
with Path("classes.csv").open("w", encoding="utf-8") as table:
    print("video,class,probability", file=table)
    for name, prediction in rows:
        print(f"{name},{prediction.labels[0]},{prediction.probs[0]:.4f}", file=table)
print(Path("classes.csv").read_text(encoding="utf-8"))

# %% [markdown]
# ## The same without Python
#
# ```
# trecvit classify videos/*.mp4                     # a table
# trecvit classify videos/*.mp4 --json > all.jsonl  # a line per video, for programs
# ```
#
# Unreadable files are listed at the end and make the exit code 1.
#
# **Next:** [stream a camera or a long video](stream_a_camera.md) · [your own classes](finetune_your_classes.md)
