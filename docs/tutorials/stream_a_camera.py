# %% [markdown]
# # Stream a camera or a long video
#
# *5 minutes.* A stream has no end, so the model sees each frame once and carries a **state** of constant size. Its
# prediction after a frame equals that of the clip so far.

# %%
import time

import torch

import trecvit
from trecvit.runtime.demo import render_scenes
from trecvit.runtime.stream import annotate, stream
from trecvit.video.decode import open_video
from trecvit.video.encode import VideoWriter
from trecvit.video.transforms import to_clip

SOURCE = "scenes.mp4"  # or "camera:0", "rtsp://…", a folder of images
MAX_FRAMES = 96

# %%
if SOURCE == "scenes.mp4":  # rendered: nine motions, one after another
    render_scenes(SOURCE, seed=2026)
model = trecvit.load("motions")

# %% [markdown]
# ## Predictions as frames arrive
#
# `stride_for` picks every n-th frame so that the model sees the frame rate that it was trained at. `restart_every`
# begins anew after so many frames: predictions then cover the recent past only.

# %%
with open_video(SOURCE) as video:
    stride = model.preprocessing.stride_for(video.info.rate_fps)
    for update in stream(model, video, stride=stride, restart_every=model.preprocessing.num_frames):
        if update.frames_seen == model.preprocessing.num_frames and update.is_new:
            [(label, probability)] = update.top(model.labels, 1)
            print(f"{update.time_s:5.1f} s  {label} {probability:.0%}")
        if update.index + 1 >= MAX_FRAMES:
            break

# %% [markdown]
# ## An annotated video

# %%
with open_video(SOURCE) as video, VideoWriter("annotated.mp4", 12) as writer:
    for update in stream(model, video, stride=stride, restart_every=model.preprocessing.num_frames):
        writer.write(annotate(update, model.labels), update.time_s)
        if update.index + 1 >= MAX_FRAMES:
            break

# %% [markdown]
# ![A frame of the annotated video](../images/demo_frame.jpg)
#
# ## Your own loop
#
# The state goes into `step` and a new one is returned; it can be saved, moved and reset. Its size does not depend on
# how many frames it has seen.

# %%
state = model.init_state(batch_size=1)
sizes, start_s = set(), time.perf_counter()
with open_video(SOURCE) as video, torch.inference_mode():
    for frame in video.frames():
        pixels = to_clip(frame.image[None], model.preprocessing.image_size)[None]  # [B=1, T=1, 3, H, W]
        out, state = model.step(pixels, state)
        sizes.add(state.nbytes)
        if frame.index + 1 >= MAX_FRAMES:
            break
print(f"{(frame.index + 1) / (time.perf_counter() - start_s):.0f} frames/s, state {sizes} bytes")
state.save("state.safetensors")  # `trecvit.State.load` resumes it, bit for bit

# %% [markdown]
# ## The same without Python
#
# ```
# trecvit stream camera:0                               # live view in the terminal
# trecvit stream VIDEO --restart-every 8 --save out.mp4 # annotated video
# ```
#
# **Next:** [many cameras in one batch, and which frames a prediction covers](../streaming.md) ·
# [run faster](../performance.md)
