# %% [markdown]
# # Serve models to browsers and programs
#
# *6 minutes.* One process holds the models; browsers and programs send frames and get predictions. Frames of many
# streams are computed together, and each stream keeps its own state on the server.
#
# Install the server's packages first: `pip install 'trecvit[serve]'`.

# %%
import atexit
import json
import subprocess
import sys
import urllib.request
from pathlib import Path

from PIL import Image, ImageDraw

from trecvit.runtime.demo import render_scenes
from trecvit.serve.client import Client
from trecvit.video.decode import read_frames

SOURCE = "scenes.mp4"  # or any video
MAX_FRAMES = 48  # three of the rendered scenes

# %% [markdown]
# ## Start the server
#
# In a terminal: `trecvit serve`. It prints its address. Here it runs beside the tutorial on a free port, and ends with
# it.

# %%
options = ["-m", "motions", "-m", "points", "--port", "0"]
command = [sys.executable, "-m", "trecvit", "serve", *options]
server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
atexit.register(server.kill)
url = server.stdout.readline().strip()
print(url)
for model in json.load(urllib.request.urlopen(f"{url}v1/models"))["models"]:
    print(model["name"], model["task"])

# %% [markdown]
# **Open the address in a browser:** the page there sends your camera or a video file to the server, and shows the most
# probable classes, or follows the points that you click.
#
# ## Classify frames as they arrive
#
# A client's session is one stream. The bundled classifier was trained at 6 frames per second, and this video has 12:
# the client sends every second frame. `reset` restarts the stream at each scene, every 16 frames.

# %%
if SOURCE == "scenes.mp4":
    render_scenes(SOURCE, seed=2026)
frames = [frame for frame in read_frames(SOURCE) if frame.index < MAX_FRAMES]
with Client(url, "motions") as client:
    for frame in frames[::2]:
        if frame.index % 16 == 0:
            client.reset()
        result = client.step(frame.image)  # uint8 [H, W, 3] of any size
        if frame.index % 16 == 14:
            best = result.top[0]
            print(f"{frame.time_s:5.1f} s  {best.label} {best.probability:.0%}")

# %% [markdown]
# `step` waits for each result. To keep more frames on their way, call `send` up to `client.ready.credit` times ahead of
# `receive`.
#
# ## Follow points
#
# `add` marks a place in the next frame that is sent. A session outlives its connection: with its token another client,
# in this process or a later one, goes on where the first stopped.

# %%
with Client(url, "points") as client:
    client.add("centre", 144, 144)
    client.add("corner", 30, 40)
    for frame in frames[:4]:
        result = client.step(frame.image)
    token = client.ready.token

with Client(url, "points", resume=token) as client:
    print(f"resumed after frame {client.ready.frame}")
    for frame in frames[4:8]:
        result = client.step(frame.image)
for point in result.points:
    shown = "visible" if point.visible else "hidden"
    print(f"{point.ref}: ({point.x:.0f}, {point.y:.0f}), {shown}")

# %%
picture = Image.fromarray(frame.image)
pen = ImageDraw.Draw(picture)
for point in result.points:
    place = (point.x - 5, point.y - 5, point.x + 5, point.y + 5)
    pen.ellipse(place, "yellow" if point.visible else None, "black")
    pen.text((point.x + 8, point.y - 6), point.ref, "yellow", stroke_width=1)
picture.save("served.png")

# %% [markdown]
# ![A scene with two named points](../images/served_points.png)
#
# ## A whole file in one request
#
# Without a client library: the body is the video file. The result is one for the whole video, here of nine scenes.

# %%
content = Path(SOURCE).read_bytes()
request = urllib.request.Request(f"{url}v1/classify?model=motions&top=3", content)
print(json.load(urllib.request.urlopen(request)))

# %% [markdown]
# ```
# curl --data-binary @scenes.mp4 http://127.0.0.1:8000/v1/classify
# curl -N --data-binary @scenes.mp4 'http://127.0.0.1:8000/v1/track?grid=3'
# ```
#
# ## Stop it
#
# In a terminal: Ctrl-C.

# %%
server.terminate()
server.wait(timeout=60)
print("stopped")

# %% [markdown]
# ## Your own models, other machines
#
# ```
# trecvit serve -m runs/mine/model    # a model that you fine-tuned
# trecvit serve --states states/      # streams outlive a restart
# trecvit serve --host 0.0.0.0 --allow-host cam.example --token-file token   # for other machines
# ```
#
# **Next:** [the protocol for clients in other languages, limits, security](../serving.md) ·
# [run in the browser instead, without a server](../export.md#the-page-in-a-browser)
