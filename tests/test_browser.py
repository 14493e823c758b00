"""The page in a real Chromium: PyTorch's numbers, a camera's frames, points, and no request but to its own files."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import PAGE, console, open_page, requests, require_browser, wait_for, write_y4m
from PIL import Image

from tools.chromium import chromium, static_server
from trecvit.accelerate.onnx_runtime import smooth_video
from trecvit.runtime.live import LiveTracker
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
    document = (Path(__file__).parents[1] / "docs" / "export.md").read_text(encoding="utf-8")
    (client,) = re.findall(r"```javascript\n(.*?)```", document, re.DOTALL)
    assert len(client.strip().splitlines()) <= 24
    for name in ("vendor", "models"):
        (tmp_path / name).symlink_to(PAGE / name)
    (tmp_path / "client.js").write_text(client)
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
    np.testing.assert_allclose(probs, model(video[None]).probs[0], atol=1e-4)


# ---- a camera ------------------------------------------------------------------------------------------------------

# Reads the number that is drawn into each camera frame (see `numbered`) from the very frames that the model gets.
READ_NUMBERS = """
window.numbers = [];
const post = Worker.prototype.postMessage;
const canvas = new OffscreenCanvas(128, 96).getContext("2d", { willReadFrequently: true });
Worker.prototype.postMessage = function (message, transfer) {
  if (message.picture) {
    canvas.drawImage(message.picture, 0, 0, 128, 96);
    let number = 0;
    for (let bit = 0; bit < 6; bit++) number |= (canvas.getImageData(8 * bit + 4, 4, 1, 1).data[1] > 127) << bit;
    numbers.push(number);
  }
  return post.call(this, message, transfer);
};
"""


def numbered(frames: np.ndarray) -> np.ndarray:
    """Draw each frame's number into its upper left corner, in squares that are white for 1."""
    for number, frame in enumerate(frames):
        for bit in range(6):
            frame[:8, 8 * bit : 8 * bit + 8] = 255 if number >> bit & 1 else 0
    return frames


def moving_patch() -> tuple[np.ndarray, np.ndarray]:
    """Return 64 frames of 128 x 96 pixels that repeat seamlessly, and the centre of a moving patch in each."""
    generator = np.random.default_rng(3)

    def surface(height: int, width: int) -> np.ndarray:
        coarse = Image.fromarray(generator.integers(30, 226, (height // 6 + 2, width // 6 + 2, 3), np.uint8))
        return np.array(coarse.resize((width, height), Image.Resampling.BICUBIC))

    background, patch = surface(96, 128) // 2 + 60, surface(28, 28)
    # It rests for 20 frames, in which it can be clicked, and then goes once around.
    turn = np.clip(np.arange(64) - 20, 0, None) * 2 * np.pi / 44
    centres = np.stack([64 + 20 * np.cos(turn), 54 + 14 * np.sin(turn)], axis=1).round()
    frames = np.repeat(background[None], 64, axis=0)
    for frame, (x, y) in zip(frames, centres.astype(int), strict=True):
        frame[y - 14 : y + 14, x - 14 : x + 14] = patch
    return numbered(frames), centres


def test_a_clicked_point_follows_the_cameras_picture_and_the_page_stays_current(address, tmp_path):
    frames, centres = moving_patch()
    write_y4m(tmp_path / "camera.y4m", frames, 5)
    with chromium(camera=tmp_path / "camera.y4m") as driver:
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": READ_NUMBERS})
        open_page(driver, address)
        driver.execute_script(
            "const s = document.getElementById('model'); s.value = 'points'; s.dispatchEvent(new Event('change'))"
        )
        wait_for(driver, "readies.some((ready) => ready.slots)")
        driver.execute_script("document.getElementById('camera').click()")
        wait_for(driver, "results.length > 3")
        driver.execute_script(CLICK_ON_PATCH, centres.tolist())
        wait_for(driver, "results.filter((result) => result.points.length).length > 50")
        found = driver.execute_script("return [results, numbers.slice(0, results.length)]")
        screenshot(driver, "tracker")
        assert not console(driver)
        assert foreign(driver, address) == []
    results, numbers = found
    tracked = [(result, number) for result, number in zip(results, numbers, strict=True) if result["points"]]
    start_number = tracked[0][1]
    offset = np.array([tracked[0][0]["points"][0][axis] for axis in "xy"]) * (128, 96) - centres[start_number]
    assert np.abs(offset).max() < 3, "the click is on the patch's centre"
    errors = [
        np.hypot(*(np.array([result["points"][0][axis] for axis in "xy"]) * (128, 96) - centres[number] - offset))
        for result, number in tracked
    ]
    assert np.median(errors) <= 2.0
    assert np.percentile(errors, 90) <= 4.0
    named = [result["frame"] for result in results]
    assert named == sorted(set(named)), "every result names a frame of its own"
    assert max(result["newest"] - result["frame"] for result in results[2:]) <= 2


CLICK_ON_PATCH = """
const [centres] = arguments, overlay = document.getElementById("overlay");
const listener = () => {
  const number = numbers[numbers.length - 1], [x, y] = centres[number], box = overlay.getBoundingClientRect();
  if (number < 1 || number > 8) return; // it rests
  const at = { clientX: box.left + x / 128 * box.width, clientY: box.top + y / 96 * box.height };
  overlay.dispatchEvent(new MouseEvent("click", { ...at, bubbles: true }));
  document.removeEventListener("trecvit-result", listener);
};
document.addEventListener("trecvit-result", listener);
"""


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
