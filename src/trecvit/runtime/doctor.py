"""Checks of the installation and the machine, with reasons for failures."""

from __future__ import annotations

import io
import os
import platform
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median

_TIMED_S = 0.5  # per dtype


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: Subject of the check.
        works: True, False, or None for something optional that is missing.
        words: The result and, for a failure, its remedy.
    """

    name: str
    works: bool | None
    words: str


def examine() -> list[Finding]:
    """Check everything the package needs or can use by using it."""
    checks: tuple[tuple[str, Callable[[], str]], ...] = (
        ("Python", platform.python_version),
        ("PyTorch", _torch),
        ("decoding and encoding", _video),
        ("bundled model", _bundled_model),
        ("processor", _processor_features),
        ("threads", _threads),
        ("fastest here", _fastest),
        ("cache folder", _cache_folder),
    )
    findings = [_try(name, check) for name, check in checks]
    findings += [*_try_all("accelerators", _accelerators), *_try_all("cameras", _cameras), _photographs()]
    return [*findings, *_try_all("weights", _zoo)]


def _try(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, check())
    except Exception as error:  # any failure is the finding
        return Finding(name, False, f"{type(error).__name__}: {error}")


def _try_all(name: str, checks: Callable[[], Iterator[Finding]]) -> list[Finding]:
    try:
        return list(checks())
    except Exception as error:
        return [Finding(name, False, f"{type(error).__name__}: {error}")]


def machine() -> dict[str, str | int]:
    """The machine and versions that measured speeds depend on."""
    import torch

    from trecvit.processor import instruction_set

    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "capability": instruction_set(),
        "torch": torch.__version__,
        "date": date.today().isoformat(),
    }


def load_average() -> float | None:
    """Load average of the last minute; None where the system has none."""
    with suppress(AttributeError, OSError):
        return round(os.getloadavg()[0], 2)
    return None


def _processor() -> str:
    """Name of the processor."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _torch() -> str:
    import torch

    product = torch.ones(8, 8) @ torch.ones(8, 8)
    if product[0, 0] != 8:
        raise RuntimeError("a matrix multiplication gave a wrong result")
    return f"{torch.__version__}, {torch.get_num_threads()} threads"


def _processor_features() -> str:
    from trecvit.processor import FEATURES, features, instruction_set

    available = features()
    words = f"{_processor()}; PyTorch uses {instruction_set()}; supports {', '.join(available) or 'no feature we use'}"
    missing = [feature for feature in FEATURES if feature not in available]
    return f"{words}; lacks {', '.join(missing)}" if missing else words


def _fastest() -> str:
    """Time a streamed frame of a small model in each dtype, in turns; modes that compile are only listed."""
    import torch

    from trecvit.accelerate.kernels import DTYPES, available_dtype
    from trecvit.accelerate.optimize import optimize
    from trecvit.accelerate.timing import timed_in_turns
    from trecvit.errors import ConfigError, PrecisionWarning
    from trecvit.model.trecvit import create_model

    model = create_model("tiny", depth=2, num_classes=0).eval()
    frames = torch.zeros(1, 1, 3, *model.preprocessing.image_size, dtype=torch.uint8)
    calls, slower = {}, []
    for name, dtype in DTYPES.items():
        with warnings.catch_warnings(), suppress(ConfigError):
            warnings.simplefilter("ignore", PrecisionWarning)
            if available_dtype(model, dtype) == dtype:
                fast = optimize(model, dtype=dtype)
                calls[name] = partial(fast.step, frames, fast.init_state(1))
        if name not in calls:
            slower.append(name)
    with torch.inference_mode():
        times_s = timed_in_turns(*calls.values(), seconds=_TIMED_S)
    times_ms = {name: median(samples_s) * 1e3 for name, samples_s in zip(calls, times_s, strict=True)}
    best = min(times_ms, key=times_ms.__getitem__)
    words = f"--mode eager --dtype {best} is the fastest one timed; two blocks of tiny take "
    words += ", ".join(f"{ms:.1f} ms in {name}" for name, ms in times_ms.items())
    words += "".join(f"; no fast {name} on this machine" for name in slower)
    return f"{words}; {_compilers()}"


def _compilers() -> str:
    """List the modes that compile, which takes up to a minute; or why they are missing."""
    from trecvit.accelerate.compile import find_compiler
    from trecvit.accelerate.openvino import find_openvino
    from trecvit.errors import TRecViTError

    available, missing = [], []
    for mode, find in {"compile": find_compiler, "openvino": find_openvino}.items():
        try:
            find()
            available.append(f"--mode {mode}")
        except TRecViTError as error:
            missing.append(str(error))
    untimed = [f"not timed because they compile first: {' and '.join(available)}"] if available else []
    return "; ".join(untimed + missing)


def _video() -> str:
    import av
    import numpy as np

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("h264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for level in (40, 200):
            picture = av.VideoFrame.from_ndarray(np.full((64, 64, 3), level, np.uint8), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    buffer.seek(0)
    with av.open(buffer, "r") as written:
        levels = [float(frame.to_ndarray(format="rgb24").mean()) for frame in written.decode(video=0)]
    if len(levels) != 2 or abs(levels[0] - 40) > 8 or abs(levels[1] - 200) > 8:
        raise RuntimeError(f"expected two frames of brightness 40 and 200 after encoding and decoding, got {levels}")
    names = {"h264": "H.264", "hevc": "H.265", "vp9": "VP9", "av1": "AV1"}
    decoders = [words for codec, words in names.items() if codec in av.codecs_available]
    return f"PyAV {av.__version__}; H.264 written and read back; decodes {', '.join(decoders)}"


def _bundled_model() -> str:
    import torch

    from trecvit.model.trecvit import TRecViT
    from trecvit.weights.load import load_as

    model = load_as(TRecViT, "motions")
    with torch.inference_mode():
        out = model(torch.zeros(1, 2, 3, *model.preprocessing.image_size, dtype=torch.uint8))
    if out.probs is None or not torch.isfinite(out.probs).all():
        raise RuntimeError("its prediction for a black video is not finite")
    return f"'motions' loads and runs, {len(model.labels)} classes"


def _cache_folder() -> str:
    from trecvit.download import cache_folder

    folder = cache_folder()
    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not os.access(nearest, os.W_OK):
        raise PermissionError(f"{folder} is not writable; set TRECVIT_CACHE to a folder that is")
    return str(folder)


def _threads() -> str:
    """Number of threads worth using under the present load."""
    import torch

    from trecvit.accelerate.threads import ThreadChoice

    most = torch.get_num_threads()
    count = ThreadChoice(most).count
    if count == most:
        return f"{count} of {most} run concurrently"
    return f"only {count} of {most} run concurrently while other programs use the CPU; optimised models use {count}"


def _accelerators() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        yield Finding("CUDA", True, ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())))
    else:
        reason = "this PyTorch is built without it" if torch.version.cuda is None else "no device found"
        yield Finding("CUDA", None, f"not available: {reason}")
    if torch.backends.mps.is_built():
        works = torch.backends.mps.is_available() or None
        yield Finding("Apple GPU", works, "available" if works else "not available on this machine")


def _cameras() -> Iterator[Finding]:
    """List cameras without opening them: another program may use one."""
    import sys

    from trecvit.video.live import cameras

    if sys.platform != "linux":
        yield Finding("cameras", None, "not listed on this system; try `trecvit stream camera:0`")
        return
    for source, name in cameras() or [("", "")]:
        yield Finding("cameras", bool(source) or None, f"{source}: {name}" if source else "none found")


def _photographs() -> Finding:
    if find_spec("skimage") is None:
        return Finding("photographs", None, "needed by recipes that use photographs: pip install 'trecvit[photos]'")
    return Finding("photographs", True, "scikit-image is installed")


def _zoo() -> Iterator[Finding]:
    from trecvit.download import cache_folder
    from trecvit.weights.zoo import ZOO

    for name, entry in ZOO.items():
        path = cache_folder() / entry.filename
        if path.exists():
            yield Finding(f"weights {name}", True, f"{path} ({path.stat().st_size / 1e6:.0f} MB)")
        else:
            yield Finding(f"weights {name}", None, f"not downloaded; `trecvit info {name}` fetches {entry.url}")
