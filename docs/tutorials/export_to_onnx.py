# %% [markdown]
# # Export to ONNX and run without PyTorch
#
# *6 minutes.* A phone, a browser or a program in another language runs ONNX, not PyTorch. Here a model is exported to a
# folder, and a program that imports neither PyTorch nor trecvit classifies a video with it, frame by frame.
#
# Exporting needs `pip install 'trecvit[onnx]'`. Running needs `onnxruntime` and `numpy`; this program also takes `av`
# to read a video and `pillow` to draw.

# %%
import json
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import onnxruntime
from PIL import Image, ImageDraw, ImageOps

FOLDER = Path("motions_onnx")
SOURCE = "scenes.mp4"  # any video
MAX_FRAMES = 144

# %% [markdown]
# ## Export
#
# `trecvit export` starts in a process of its own, so that PyTorch stays out of this one. For a tracker, name it instead
# of `motions` and give the largest number of points: `--points 16`.

# %%
if not FOLDER.exists():
    export = [sys.executable, "-m", "trecvit", "export", "motions", FOLDER]
    subprocess.run([*export, "--format", "onnx"], check=True)
manifest = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))
print(f"step.onnx: {manifest['files']['step.onnx']['bytes'] / 1e6:.1f} MB")
print(f"{len(manifest['labels'])} classes, frames of {manifest['image_size']} pixels")
errors = manifest["compared"]["largest_relative_errors"]
print(f"largest difference from the model: {max(errors.values()):.0e}")

# %% [markdown]
# `step.onnx` is one step of the model: a frame and the state in, predictions and the next state out. `manifest.json`
# names the inputs and outputs, and holds the initial state, the classes, and how to prepare frames. The export compared
# the graph with the model before it wrote the folder; the last line is the result, relative to the largest value.
#
# ## A video
#
# Nine rendered scenes, each with one motion. `SOURCE` may name your own video instead.

# %%
if SOURCE == "scenes.mp4":
    code = "from trecvit.runtime.demo import render_scenes as render; "
    code += "print(*render('scenes.mp4', seed=2026), sep=', ')"
    subprocess.run([sys.executable, "-c", code], check=True)

# %% [markdown]
# ## The step
#
# The rest needs no trecvit: copy the folder to another machine and go on there. Every value of the state begins at the
# constant that the manifest gives; afterwards, each output of the state is the next call's input.

# %%
session = onnxruntime.InferenceSession(FOLDER / "step.onnx")
outputs = [output.name for output in session.get_outputs()]


def initial_state():
    tensors = manifest["state"]
    return {t["input"]: np.full(t["shape"], t["initial"], np.float32) for t in tensors}


def step(picture, state):
    height, width = manifest["image_size"]
    # Resized to cover the size, then cut at the centre.
    fitted = ImageOps.fit(picture, (width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(fitted, np.float32).transpose(2, 0, 1) / 255
    arrays = session.run(None, {"frame": pixels[None, None], **state})
    values = dict(zip(outputs, arrays, strict=True))
    return values, {t["input"]: values[t["output"]] for t in manifest["state"]}


# %% [markdown]
# ## Stream a video
#
# The model was trained on clips of 8 frames at 6 frames per second, so it sees every second frame of this video. After
# 8 of them the state is reset: a prediction covers one scene.

# %%
preprocessing = manifest["preprocessing"]
state, seen, pictures, found = initial_state(), 0, [], []
with av.open(SOURCE) as video:
    stream = video.streams.video[0]
    stride = max(1, round(stream.average_rate / preprocessing["frame_rate_fps"]))
    for index, frame in enumerate(video.decode(stream)):
        if index >= MAX_FRAMES:
            break
        if index % stride:
            continue
        values, state = step(frame.to_image(), state)
        seen += 1
        if seen == preprocessing["num_frames"]:
            best = int(values["probs"][0].argmax())
            found.append(manifest["labels"][best])
            print(f"{frame.time:5.1f} s  {found[-1]} {values['probs'][0, best]:.0%}")
            pictures.append(frame.to_image())
            state, seen = initial_state(), 0

# %% [markdown]
# ## What you should see

# %%
side, caption = 180, 22
rows = -(-len(pictures) // 3)
sheet = Image.new("RGB", (3 * side, rows * (side + caption)), "white")
for number, (picture, name) in enumerate(zip(pictures, found, strict=True)):
    left, top = side * (number % 3), (side + caption) * (number // 3)
    sheet.paste(picture.resize((side, side)), (left, top))
    ImageDraw.Draw(sheet).text((left + 4, top + side + 4), name, "black")
sheet.save("classified.png")
print("PyTorch is loaded:", "torch" in sys.modules)

# %% [markdown]
# ![Nine scenes, each with the class that the model found](../images/classified_scenes.png)
#
# The eighth scene shows a parting and is called "opening", as by the model in PyTorch.
#
# ## The same graph elsewhere
#
# ```
# trecvit stream VIDEO -m motions_onnx       # as an engine of trecvit's own commands
# trecvit export points points_onnx --format onnx --points 16    # a point tracker
# trecvit export motions small --format onnx --weights float16   # half of the file's size
# trecvit serve                              # /browser/ runs models in the browser
# ```
#
# **Next:** [JavaScript, adding and removing points, Triton](../export.md) ·
# [serve a model to many clients](serve.md)
