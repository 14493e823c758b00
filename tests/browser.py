"""The built page in Chromium."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trecvit
from tools.page import MODELS

PAGE = Path(trecvit.__file__).parent / "serve" / "page" / "browser"
RESULTS = """
window.results = []; window.readies = [];
addEventListener("trecvit-result", ({ detail }) => results.push({ ...detail, probs: undefined }), true);
addEventListener("trecvit-ready", ({ detail }) => readies.push(detail), true);
"""


def documented_javascript() -> str:
    """Return the client of docs/export.md."""
    document = (Path(__file__).parents[1] / "docs" / "export.md").read_text(encoding="utf-8")
    (client,) = re.findall(r"```javascript\n(.*?)```", document, re.DOTALL)
    assert len(client.strip().splitlines()) <= 24
    return client


def require_browser() -> None:
    """Skip, with the reason, where Chromium or the built page is missing."""
    pytest.importorskip("selenium")
    for program in ("chromium", "chromedriver"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (Debian: chromium, chromium-driver)")
    if not all((PAGE / "models" / name / "step.onnx").exists() for name in MODELS):
        pytest.skip("the page is not built; run scripts/page")
    for name in MODELS:
        weights = Path(trecvit.__file__).parent / "weights" / name / "model.safetensors"
        if (PAGE / "models" / name / "step.onnx").stat().st_mtime < weights.stat().st_mtime:
            pytest.skip(f"the page's {name} is older than its weights; run scripts/page")


def open_page(driver: Any, address: str) -> None:
    """Open the page with a record of its events in `results` and `readies`."""
    driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": RESULTS})
    driver.get(f"{address}/index.html")


def wait_for(driver: Any, condition: str, *, seconds: float = 90) -> Any:
    """Wait until a JavaScript expression is true; return its value."""
    from selenium.common.exceptions import TimeoutException
    from selenium.webdriver.support.ui import WebDriverWait

    try:
        return WebDriverWait(driver, seconds, 0.1).until(lambda d: d.execute_script(f"return {condition}"))
    except TimeoutException:
        message = driver.execute_script("return document.getElementById('message')?.textContent")
        raise AssertionError(
            f"{condition}: not within {seconds} s; the page says {message!r}; {console(driver)}"
        ) from None


def console(driver: Any) -> list[str]:
    """Return errors and warnings of the console."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def requests(driver: Any) -> list[str]:
    """Return the addresses of the page's requests; its workers' fall under the server's content security policy."""
    events = (json.loads(entry["message"])["message"] for entry in driver.get_log("performance"))
    return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]


def write_y4m(path: Path, frames: np.ndarray, fps: int) -> None:
    """Write RGB frames `[T,H,W,3]` of even sides as uncompressed YUV 4:2:0 (BT.601, limited range)."""
    rgb = frames.astype(np.float32)
    r, g, b = (rgb[..., channel] for channel in range(3))
    luma = 16 + (65.738 * r + 129.057 * g + 25.064 * b) / 256
    cb = 128 + (-37.945 * r - 74.494 * g + 112.439 * b) / 256
    cr = 128 + (112.439 * r - 94.154 * g - 18.285 * b) / 256
    height, width = frames.shape[1:3]
    with path.open("wb") as file:
        file.write(f"YUV4MPEG2 W{width} H{height} F{fps}:1 Ip A1:1 C420jpeg\n".encode())
        for planes in zip(luma, cb, cr, strict=True):
            file.write(b"FRAME\n")
            file.write(np.round(planes[0]).astype(np.uint8).tobytes())
            for plane in planes[1:]:
                halved = plane.reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3))
                file.write(np.round(halved).astype(np.uint8).tobytes())
