"""The page in a real Chromium: PyTorch's numbers, a camera's frames, points, and no request but to its own files."""

from __future__ import annotations

import base64
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import PAGE, console, documented_javascript, open_page, requests, require_browser, wait_for, write_y4m
from models import beginning_local_tracker
from PIL import Image

from tools.chromium import chromium, static_server
from trecvit.accelerate.exported import export
from trecvit.accelerate.onnx_runtime import smooth_video
from trecvit.files import write_json
from trecvit.runtime.live import LiveTracker
from trecvit.synthetic.world import LABELS, World, WorldConfig
from trecvit.video.transforms import to_clip, to_whole_clip
from trecvit.weights.load import load

pytestmark = pytest.mark.slow

# Steps a model of the page through raw frames, with edits of its points before some of them.
RUN = """
const [name, encoded, edits, done] = arguments;
(async () => {
  const ort = await import("./vendor/ort.wasm.min.mjs");
  ort.env.wasm.numThreads = 1;
  const { Model } = await import("./model.js");
  const model = await Model.open(ort, `./models/${name}`, { executionProviders: ["wasm"] });
  const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
  const [height, width] = model.imageSize, size = 3 * height * width, found = [], ids = {};
  for (let frame = 0; frame * size < bytes.length; frame++) {
    for (const [kind, key, x, y] of edits[frame] ?? []) {
      if (kind === "add") ids[key] = model.add(x, y);
      else model.remove(ids[key]);
    }
    const start = performance.now();
    const { probs, points } = await model.step(bytes.subarray(frame * size, (frame + 1) * size));
    const ms = performance.now() - start;
    found.push({ ms, probs: probs && [...probs], logits: probs && [...model.results.logits.data], points });
  }
  return found;
})().then(done, (error) => done({ error: String(error.stack ?? error) }));
"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    require_browser()
    with static_server(PAGE) as url:
        yield url


@pytest.fixture(scope="module")
def driver(address: str) -> Iterator[Any]:
    with chromium() as started:
        started.get(f"{address}/style.css")  # any address of the server: the scripts below import the page's modules
        yield started


def run(driver: Any, name: str, video: torch.Tensor, edits: dict[int, list[Any]] | None = None) -> list[dict[str, Any]]:
    """Step through uint8 frames `[T,3,H,W]` in the page."""
    encoded = base64.b64encode(video.contiguous().numpy().tobytes()).decode()
    found = driver.execute_async_script(RUN, name, encoded, edits or {})
    assert isinstance(found, list), found["error"]
    return found


def test_the_classifier_gives_pytorchs_logits_over_thirty_frames(driver):
    model = load("motions")
    video = (smooth_video(1, 30, (64, 64)) * 255).byte()
    state = model.init_state(1)
    for frame, result in zip(video[0], run(driver, "motions", video[0]), strict=True):
        with torch.inference_mode():
            out, state = model.step(frame[None, None], state)
        np.testing.assert_allclose(result["logits"], out.logits[0], atol=1e-4)
        np.testing.assert_allclose(result["probs"], out.probs[0], atol=1e-4)


def test_the_trackers_points_are_those_of_a_live_tracker(driver):
    """Added, removed and added again, over thirty frames, within 0.01 px."""
    tracker = load("points")
    height, width = tracker.preprocessing.image_size
    video = (smooth_video(1, 30, (height, width)) * 255).byte()
    edits = {
        0: [("add", "a", 0.3, 0.6), ("add", "b", 0.7, 0.4)],
        4: [("add", "c", 0.5, 0.5)],
        9: [("remove", "a")],
        12: [("add", "d", 0.2, 0.2)],
        20: [("remove", "c"), ("remove", "d"), ("add", "e", 0.6, 0.8)],
    }
    live, ids = LiveTracker(tracker, 16), {}
    for index, result in enumerate(run(driver, "points", video[0], edits)):
        for kind, key, *place in edits.get(index, []):
            if kind == "add":
                ids[key] = live.add(place[0] * width, place[1] * height)
            else:
                live.remove(ids[key])
        expected = live.update(video[0, index].movedim(0, -1).numpy())
        assert [point["id"] for point in result["points"]] == list(live.ids)
        got = [(point["x"] * width, point["y"] * height) for point in result["points"]]
        np.testing.assert_allclose(got, expected.points_xy, atol=0.01)
        assert [point["visible"] for point in result["points"]] == list(expected.visible)


def test_pictures_are_resized_as_in_training(driver):
    """Within one step of 8 bits of torch's antialiased bilinear kernels, which round their weights."""
    generator = np.random.default_rng(0)
    for height, width in ((48, 64), (120, 90), (33, 200)):
        picture = generator.integers(0, 256, (height, width, 3), np.uint8)
        rgba = np.concatenate([picture, np.full((height, width, 1), 255, np.uint8)], axis=-1)
        script = """
        const [encoded, width, height, done] = arguments;
        const bytes = Uint8ClampedArray.from(atob(encoded), (letter) => letter.charCodeAt(0));
        import("./resize.js").then(({ whole, covering }) =>
          done([whole, covering].map((resize) => [...resize(bytes, width, height, [40, 56])])));
        """
        encoded = base64.b64encode(rgba.tobytes()).decode()
        found = driver.execute_async_script(script, encoded, width, height)
        for numbers, resize in zip(found, (to_whole_clip, to_clip), strict=True):
            expected = resize(picture[None], (40, 56))[0].numpy().astype(int)
            assert np.abs(np.array(numbers).reshape(expected.shape) - expected).max() <= 1, resize.__name__


def test_the_documented_javascript_gives_pytorchs_probabilities(tmp_path):
    require_browser()
    for name in ("vendor", "models"):
        (tmp_path / name).symlink_to(PAGE / name)
    (tmp_path / "client.js").write_text(documented_javascript())
    (tmp_path / "index.html").write_text("<!doctype html><title>client</title>")
    model, video = load("motions"), (smooth_video(1, 4, (64, 64)) * 255).byte()[0]
    rgba = torch.cat([video, torch.full_like(video[:, :1], 255)], dim=1).movedim(1, -1).contiguous().numpy()
    script = """
    const [encoded, done] = arguments;
    const bytes = Uint8ClampedArray.from(atob(encoded), (letter) => letter.charCodeAt(0));
    (async () => {
      const { open } = await import("./client.js"), step = await open("./models/motions");
      let results;
      for (let frame = 0; frame < 4; frame++) results = await step(bytes.subarray(frame * 16384, (frame + 1) * 16384));
      return [...results.probs.data];
    })().then(done, (error) => done(String(error)));
    """
    with static_server(tmp_path) as url, chromium() as started:
        started.get(f"{url}/index.html")
        probs = started.execute_async_script(script, base64.b64encode(rgba.tobytes()).decode())
    np.testing.assert_allclose(probs, model(video[None]).probs[0].detach(), atol=1e-4)


# ---- a camera ------------------------------------------------------------------------------------------------------

STRIP = 16  # columns beside each square picture of a camera, which classifiers do not see
SIDE = 96

# Reads the number that is drawn into each camera frame (see `numbered`) from the very frames that the model gets.
READ_NUMBERS = """
window.numbers = [];
const post = Worker.prototype.postMessage;
const canvas = new OffscreenCanvas(128, 96).getContext("2d", { willReadFrequently: true });
Worker.prototype.postMessage = function (message, transfer) {
  if (message.picture) {
    canvas.drawImage(message.picture, 0, 0, 128, 96);
    let number = 0;
    for (let bit = 0; bit < 6; bit++) number |= (canvas.getImageData(8, 8 * bit + 4, 1, 1).data[1] > 127) << bit;
    numbers.push(number);
  }
  return post.call(this, message, transfer);
};
"""


def numbered(frames: np.ndarray) -> np.ndarray:
    """Put square frames between two strips; the left one has each frame's number, in squares that are white for 1."""
    wide = np.pad(frames, ((0, 0), (0, 0), (STRIP, STRIP), (0, 0)))
    for number, frame in enumerate(wide):
        for bit in range(6):
            frame[8 * bit : 8 * bit + 8, 4:12] = 255 if number >> bit & 1 else 0
    return wide


def moving_patch(resting: int = 16, turning: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """Return frames that repeat seamlessly, and the centre of a patch that rests and then goes once around."""
    generator = np.random.default_rng(3)

    def surface(side: int) -> np.ndarray:
        coarse = Image.fromarray(generator.integers(30, 226, (side // 6 + 2, side // 6 + 2, 3), np.uint8))
        return np.array(coarse.resize((side, side), Image.Resampling.BICUBIC))

    background, patch = surface(SIDE) // 2 + 60, surface(28)
    turn = np.clip(np.arange(resting + turning) - resting, 0, None) * 2 * np.pi / turning
    centres = np.stack([48 + 16 * np.cos(turn), 48 + 16 * np.sin(turn)], axis=1).round()
    frames = np.repeat(background[None], len(centres), axis=0)
    for frame, (x, y) in zip(frames, centres.astype(int), strict=True):
        frame[y - 14 : y + 14, x - 14 : x + 14] = patch
    return numbered(frames), centres + np.array((STRIP, 0))


@pytest.fixture(scope="module")
def tracker_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page with one model: a tracker before its training, which matches gradients and colours."""
    require_browser()
    folder = tmp_path_factory.mktemp("page")
    for path in PAGE.iterdir():
        if path.name != "models":
            (folder / path.name).symlink_to(path)
    export(beginning_local_tracker((SIDE, SIDE + 2 * STRIP)), folder / "models" / "local", mode="onnx", num_points=4)
    write_json(folder / "models" / "index.json", ["local"])
    return folder


def choose_camera(driver: Any, address: str) -> None:
    """Open the page, and its camera once the model is there."""
    driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": READ_NUMBERS})
    open_page(driver, address)
    wait_for(driver, "readies.length")
    driver.execute_script("document.getElementById('camera').click()")


def assert_quiet(driver: Any, address: str) -> None:
    """Check that no error was logged and no request left the page's origin."""
    assert not console(driver)
    assert foreign(driver, address) == []


# Clicks on the patch's centre while it rests.
CLICK_ON_PATCH = """
const [centres] = arguments, overlay = document.getElementById("overlay");
const listener = () => {
  const number = numbers[numbers.length - 1], [x, y] = centres[number], box = overlay.getBoundingClientRect();
  if (number < 1 || number > 8) return;
  const at = { clientX: box.left + x / 128 * box.width, clientY: box.top + y / 96 * box.height };
  overlay.dispatchEvent(new MouseEvent("click", { ...at, bubbles: true }));
  document.removeEventListener("trecvit-result", listener);
};
document.addEventListener("trecvit-result", listener);
"""


def test_a_clicked_point_follows_the_cameras_picture(tracker_page, tmp_path):
    frames, centres = moving_patch()
    write_y4m(tmp_path / "camera.y4m", frames, 8)
    with static_server(tracker_page) as address, chromium(camera=tmp_path / "camera.y4m") as driver:
        choose_camera(driver, address)
        wait_for(driver, "results.length > 3")
        driver.execute_script(CLICK_ON_PATCH, centres.tolist())
        wait_for(driver, "results.filter((result) => result.points.length).length > 64")
        results, numbers = driver.execute_script("return [results, numbers.slice(0, results.length)]")
        screenshot(driver, "tracker")
        assert_quiet(driver, address)
    found = [
        (np.array([result["points"][0][axis] for axis in "xy"]) * (128, 96), centres[number])
        for result, number in zip(results, numbers, strict=True)
        if result["points"]
    ]
    errors = [np.hypot(*(place - centre)) for place, centre in found]
    assert np.ptp([centre for _, centre in found], axis=0).min() > 25, "it went around"
    assert max(errors) <= 2.0
    # Each result names the frame that it is for: as many frames lie between two results as between their pictures.
    named = np.array([result["frame"] for result in results])
    assert (np.diff(named) > 0).all()
    between = (np.diff(named) - np.diff(numbers)) % len(frames)
    assert np.mean(between == 0) > 0.9


# The model as `Model`, but slow.
SLOW = """
import { Model as Fast } from "./fast.js";
export class Model extends Fast {
  static async open(...given) { return Object.setPrototypeOf(await Fast.open(...given), Model.prototype); }
  async step(planes) {
    await new Promise((resolve) => setTimeout(resolve, 420));
    return super.step(planes);
  }
}
"""


def test_a_slow_model_drops_frames_and_stays_within_two_frames_of_now(tracker_page, tmp_path):
    page = tmp_path / "page"
    shutil.copytree(tracker_page, page, symlinks=True)
    (page / "model.js").rename(page / "fast.js")
    (page / "model.js").write_text(SLOW)
    write_y4m(tmp_path / "camera.y4m", moving_patch()[0], 3)
    with static_server(page) as address, chromium(camera=tmp_path / "camera.y4m") as driver:
        choose_camera(driver, address)
        wait_for(driver, "results.length > 15")
        results = driver.execute_script("return results.slice(2)")
        assert_quiet(driver, address)
    behind = [result["newest"] - result["frame"] for result in results]
    assert min(behind) >= 1
    assert max(behind) <= 2
    dropped = [result["dropped"] for result in results]
    assert dropped[-1] > 1
    # All frames until now were sent, one per result, or dropped, or one waits.
    sent = np.array([result["newest"] for result in results]) - dropped - 1
    assert (np.diff(sent) == 1).all()


# Starts over when the camera's clip does; keeps the answer after each whole clip.
ALIGN = """
window.answers = [];
document.getElementById("restart").click();
document.addEventListener("trecvit-result", ({ detail }) => {
  if (numbers[numbers.length - 1] < 7) return;
  if (detail.frames_seen >= 7) answers.push(detail.top[0].label);
  document.getElementById("reset").click();
});
"""


def test_the_class_of_what_the_camera_shows_is_named(address, tmp_path):
    label, model = "moving right", load("motions")
    world = World(WorldConfig(num_frames=16, image_size=(SIDE, SIDE)), seed=1_000_003)
    clips = (world.clip(number) for number in range(400))
    frames = next(
        frames[::2]
        for frames, truth in clips
        if LABELS[truth] == label and model(to_clip(frames[::2], (64, 64))[None]).probs.argmax() == truth
    )
    # Slower than the model's 6 frames/s, so that it takes every frame.
    write_y4m(tmp_path / "camera.y4m", numbered(np.asarray(frames)), 5)
    with chromium(camera=tmp_path / "camera.y4m") as driver:
        choose_camera(driver, address)
        wait_for(driver, "results.length")
        driver.execute_script(ALIGN)
        wait_for(driver, "answers.length > 2")
        answers = driver.execute_script("return answers")
        screenshot(driver, "classes")
        assert_quiet(driver, address)
    assert Counter(answers).most_common(1)[0][0] == label, answers


def test_a_missing_camera_is_explained_and_a_file_plays_instead(address):
    with chromium() as driver:
        open_page(driver, address)
        wait_for(driver, "readies.length")
        driver.execute_script("document.getElementById('camera').click()")
        wait_for(driver, "/No camera was found|was not allowed/.test(document.getElementById('message').textContent)")
        driver.find_element("id", "file").send_keys(str(PAGE / "sample.webm"))
        wait_for(driver, "results.length > 8")
        assert driver.execute_script("return document.getElementById('message').textContent") == ""
        assert foreign(driver, address) == []


def test_the_page_works_with_the_keyboard_on_a_phones_width_and_in_the_dark(address):
    from selenium.webdriver.common.keys import Keys

    with chromium(size=(500, 900)) as driver:
        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
        )
        driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
        )
        open_page(driver, address)
        driver.find_element("id", "model").send_keys("points")
        wait_for(driver, "readies.some((ready) => ready.slots)")
        driver.find_element("id", "sample").send_keys(Keys.ENTER)
        wait_for(driver, "results.length")
        driver.find_element("id", "overlay").send_keys(Keys.ARROW_LEFT, Keys.ARROW_UP, Keys.ENTER)
        point = wait_for(driver, "results.find((result) => result.points.length)?.points[0]")
        assert abs(point["x"] - 0.48) < 0.2
        assert driver.execute_script("return document.documentElement.scrollWidth") <= 390
        screenshot(driver, "phone_dark")
        assert not console(driver)


def test_webgpu_is_used_only_where_its_first_frames_agree(address):
    with chromium("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan") as driver:
        open_page(driver, address)
        wait_for(driver, "readies.length")
        if not driver.execute_async_script(
            "navigator.gpu?.requestAdapter().then((a) => arguments[0](!!a)) ?? arguments[0](false)"
        ):
            pytest.skip("this Chromium has no WebGPU adapter")
        driver.execute_script("document.getElementById('gpu').click()")
        ready = wait_for(driver, "readies[1]", seconds=150)
        assert ready["backend"] == "WebGPU", ready["remark"]
        driver.execute_script("document.getElementById('sample').click()")
        wait_for(driver, "results.length > 2")


def foreign(driver: Any, address: str) -> list[str]:
    """Return the requests to another origin."""
    allowed = (address, "blob:", "data:")
    return [url for url in requests(driver) if not url.startswith(allowed)]


def screenshot(driver: Any, name: str) -> None:
    """Check that a screenshot is not blank; keep it in $TRECVIT_SCREENSHOTS for people."""
    import io

    png = driver.get_screenshot_as_png()
    if folder := os.environ.get("TRECVIT_SCREENSHOTS"):
        (Path(folder) / f"{name}.png").write_bytes(png)
    assert np.array(Image.open(io.BytesIO(png)).convert("L")).std() > 10
