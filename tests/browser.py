"""The built page in Chromium."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import trecvit
from tools.page import MODELS

PAGE = Path(trecvit.__file__).parent / "serve" / "page" / "browser"
RESULTS = """
window.results = []; window.readies = [];
addEventListener("trecvit-result", ({ detail }) => results.push({ ...detail, probs: undefined }), true);
addEventListener("trecvit-ready", ({ detail }) => readies.push(detail), true);
"""


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
