# %% [markdown]
# # Track points live
#
# *5 minutes.* A tracker follows chosen points through a video: where each is, whether it is visible, and how certain
# that is. Points are added and removed while the stream runs; the cost of a frame stays the same.
#
# The bundled tracker `points` is small and was trained on synthetic scenes: use it to try things. For real videos load
# `"bootstapnext"` or `"tapnextpp"`, which are downloaded once ([model zoo](../zoo.md)).

# %%
import numpy as np

import trecvit
from trecvit.runtime.demo import render_scenes
from trecvit.runtime.follow import Trails, follow, grid_queries
from trecvit.video.decode import open_video
from trecvit.video.encode import VideoWriter

SOURCE = "scenes.mp4"  # or "camera:0", "rtsp://…", a folder of images
MAX_FRAMES = 16  # one of the rendered scenes

# %%
if SOURCE == "scenes.mp4":
    render_scenes(SOURCE, seed=2026)
tracker = trecvit.load("points")

# %% [markdown]
# ## A grid of points, drawn with their trails

# %%
queries = grid_queries(6, (288, 288))  # rows of (frame, y, x) in pixels of the video
trails = Trails(len(queries), num_frames=12)
with open_video(SOURCE) as video, VideoWriter("tracked.mp4", 12) as writer:
    for update in follow(tracker, video, queries):
        writer.write(trails.draw(update), update.time_s)
        if update.index + 1 >= MAX_FRAMES:
            break
moved_px = np.linalg.norm(update.points.points_xy - queries[:, :0:-1], axis=1)
print(f"{(moved_px > 10).sum()} of {len(queries)} points moved more than 10 pixels")

# %% [markdown]
# ![Points and their trails](../images/tracked_frame.jpg)
#
# Points on the background stay; those on the ring follow it to the left until it leaves the picture, where they jump. A
# larger tracker does better there.
#
# ## Add and remove points
#
# `LiveTracker` keeps slots for points that do not exist yet. Choose `max_points` no larger than you need: empty slots
# cost time too.

# %%
live = trecvit.LiveTracker(tracker, max_points=4)
centre = live.add(144, 144)  # where it is in the next frame
with open_video(SOURCE) as video:
    for frame in video.frames():
        points_xy, visible, certainty = live.update(frame.image)  # rows as in live.ids
        if frame.index == 4:
            corner = live.add(30.5, 40)
        if frame.index == 8:
            live.remove(centre)
        if frame.index + 1 >= MAX_FRAMES:
            break
assert live.ids == (corner,)
print(f"point {corner} is at {points_xy[-1].round(1)}, {'visible' if visible[-1] else 'hidden'}, {certainty[-1]:.0%}")

# %% [markdown]
# ## The same without Python
#
# ```
# trecvit track VIDEO --model points --grid 10 --save out.mp4
# trecvit track camera:0 --live --points 320,200
# ```
#
# **Next:** [choosing a tracker, output files, how good they are](../tracking.md) ·
# [train your own](train_the_tracker.md)
