"""Uploaded videos: streamed to disk within limits, and processed frame by frame beside the live streams."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, aclosing, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send
from torch import Tensor

from trecvit.errors import VideoError
from trecvit.runtime.follow import Queries, grid_queries
from trecvit.runtime.live import PointSlots, check_inside
from trecvit.runtime.predict import read_clips
from trecvit.serve.batching import ModelStreams
from trecvit.serve.metrics import Metrics
from trecvit.serve.protocol import ProtocolError
from trecvit.serve.sessions import Limits
from trecvit.video.decode import Video, open_video
from trecvit.video.frames import Frame, VideoInfo

MAX_CLIPS, MAX_TOP = 16, 100
_Returned = TypeVar("_Returned")


class Uploads:
    """The routes that take a file.

    Args:
        batchers: By the models' names.
        limits: Limits.
        metrics: Counters.
    """

    def __init__(self, batchers: Mapping[str, ModelStreams], limits: Limits, metrics: Metrics) -> None:
        self._batchers, self._limits, self._metrics = batchers, limits, metrics
        self._running = 0

    async def classify(self, request: Request) -> Response:
        """Answer with the most probable classes, averaged over clips, as `trecvit classify` does."""
        clips, top = _count(request, "clips", 4, MAX_CLIPS), _count(request, "top", 5, MAX_TOP)
        batcher = self._batcher(request, tracks=False)
        async with AsyncExitStack() as stack:
            file = await stack.enter_async_context(self._upload(request, "classify"))
            served = batcher.served
            frames, num_frames = await file.call(lambda video: read_clips(video, served.preprocessing, clips))
            each = await asyncio.gather(*(_last(batcher, clip) for clip in frames))
            probs = np.mean(each, axis=0)
            order = np.argsort(-probs, kind="stable")[:top]
            best = [{"label": served.labels[index], "probability": round(float(probs[index]), 6)} for index in order]
            return JSONResponse({"model": served.name, "frames": num_frames, "top": best})

    async def track(self, request: Request) -> Response:
        """Answer with a line of JSON for each frame, as it is tracked."""
        batcher = self._batcher(request, tracks=True)
        points, grid = request.query_params.get("points"), request.query_params.get("grid")
        if (points is None) == (grid is None):
            raise ProtocolError("points", "points=x,y;x,y@frame or grid=n", "both or none")
        max_points = batcher.served.max_points
        if points is not None:
            queries = _queries(points)
        else:
            side = _count(request, "grid", 1, max_points)
        count = len(queries) if points is not None else side**2
        if count > max_points:
            raise ProtocolError("points", f"1 to {max_points} points", str(count))
        async with AsyncExitStack() as stack:
            file = await stack.enter_async_context(self._upload(request, "track"))
            info = await file.call(lambda video: video.info)
            if points is None:
                queries = grid_queries(side, (info.height_px, info.width_px))
            for _, y, x in queries:
                _check_point(float(x), float(y), info)
            return _Lines(self._lines(batcher, file, queries), stack.pop_all(), self._limits.idle_s)

    async def _lines(
        self, batcher: ModelStreams, file: _File, queries: Queries
    ) -> AsyncGenerator[dict[str, Any], None]:
        served, slots, number = batcher.served, PointSlots(batcher.served.max_points), 0
        query_of: dict[int, int] = {}
        key = batcher.open()
        try:
            await file.start(served.to_clip)
            while (item := await file.next_frame()) is not None:
                if number == self._limits.max_upload_frames:
                    raise ProtocolError("frames", f"at most {self._limits.max_upload_frames} frames", "more")
                frame, clip = item
                height, width = frame.image.shape[:2]
                for index, (t, y, x) in enumerate(queries):
                    if t == number:
                        query_of[slots.add(float(x), float(y))] = index
                changes = slots.changes((height, width))
                slots.settle()
                answer = await asyncio.wrap_future(batcher.submit(key, clip, changes=changes))
                rows = slots.rows
                points_xy = answer.result.points_xy[rows] * np.array([width, height], np.float32)
                points = zip(
                    slots.ids, points_xy, answer.result.visible[rows], answer.result.certainty[rows], strict=True
                )
                yield {
                    "frame": frame.index,
                    "time_s": round(frame.time_s, 4),
                    "points": [
                        {
                            "id": query_of[point_id],
                            "x": round(float(x), 4),
                            "y": round(float(y), 4),
                            "visible": bool(visible),
                            "certainty": round(float(certainty), 4),
                        }
                        for point_id, (x, y), visible, certainty in points
                    ],
                }
                number += 1
            yield {"done": True, "frames": number}
        except (ProtocolError, VideoError) as error:
            yield {"error": file.described(error).to_dict(), "frames": number}
        finally:
            batcher.drop(key)

    def _batcher(self, request: Request, *, tracks: bool) -> ModelStreams:
        fitting = [name for name, batcher in self._batchers.items() if bool(batcher.served.max_points) == tracks]
        name = request.query_params.get("model", fitting[0] if fitting else "")
        if name not in fitting:
            kinds = "tracker" if tracks else "classifier"
            raise ProtocolError("model", f"a {kinds}, one of {', '.join(fitting) or 'none'}", repr(name[:80]))
        return self._batchers[name]

    @asynccontextmanager
    async def _upload(self, request: Request, route: str) -> AsyncIterator[_File]:
        """Receive the request's body as a video."""
        if self._running >= self._limits.max_uploads:
            raise ProtocolError("busy", f"at most {self._limits.max_uploads} uploads at a time", "one more")
        self._running += 1
        outcome = "refused"
        folder = Path(tempfile.mkdtemp(prefix="trecvit-upload-"))
        file = _File(folder / "video", self._limits.max_pixels)
        try:
            async with asyncio.timeout(self._limits.idle_s):
                await self._receive(request, folder / "video")
            try:
                await file.open()
                yield file
                outcome = "done"
            except VideoError as error:
                raise file.described(error) from error
        except ClientDisconnect as error:
            raise ProtocolError("left", "a whole file", "a part of it") from error
        except TimeoutError as error:
            raise ProtocolError("idle", f"the file within {self._limits.idle_s:g} s", "a part of it") from error
        finally:
            self._running -= 1
            self._metrics.uploads.labels(route, outcome).inc()
            file.close()
            shutil.rmtree(folder, ignore_errors=True)

    async def _receive(self, request: Request, path: Path) -> None:
        limit = self._limits.max_upload_bytes
        stated = request.headers.get("content-length", "0")
        if stated.isdecimal() and len(stated) < 20 and int(stated) > limit:
            raise ProtocolError("bytes", f"a file of at most {limit} bytes", stated)
        count = 0
        with path.open("wb") as file:
            async for chunk in request.stream():
                count += len(chunk)
                if count > limit:
                    raise ProtocolError("bytes", f"a file of at most {limit} bytes", "a larger one")
                file.write(chunk)
        if not count:
            raise ProtocolError("video", "a video as the request's body", "an empty body")


class _File:
    """An uploaded video, read in a thread of its own."""

    def __init__(self, path: Path, max_pixels: int) -> None:
        self._path, self._max_pixels = path, max_pixels
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="upload")
        self._stack = ExitStack()
        self._video: Video | None = None

    async def open(self) -> None:
        """Open it. Raises VideoError."""
        opening = open_video(self._path, max_pixels=self._max_pixels)
        self._video = await self._run(partial(self._stack.enter_context, opening))

    async def call(self, function: Callable[[Video], _Returned]) -> _Returned:
        """Call a function of the video."""
        assert self._video is not None, "open"
        return await self._run(partial(function, self._video))

    async def start(self, to_clip: Callable[[Any], Tensor]) -> None:
        """Start to read the frames, each with its clip."""

        def frames(video: Video) -> Any:
            return ((frame, to_clip(frame.image)) for frame in video.frames())

        self._frames = await self.call(frames)

    async def next_frame(self) -> tuple[Frame, Tensor] | None:
        """Return the next frame and its clip; None at the end."""
        return await self._run(partial(next, self._frames, None))

    def described(self, error: VideoError | ProtocolError) -> ProtocolError:
        """Return an error for the client, without the file's path."""
        if isinstance(error, ProtocolError):
            return error
        reason = error.reason.replace(str(self._path), "the upload")
        return ProtocolError("video", "a whole video that FFmpeg can read", re.sub(r"\s+", " ", reason))

    def close(self) -> None:
        """Close it after the call that runs."""
        self._thread.submit(self._stack.close)
        self._thread.shutdown(wait=False)

    async def _run(self, function: Callable[[], _Returned]) -> _Returned:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)


class _Lines(Response):
    """A response of NDJSON that ends its source when the client leaves, or does not read for a while."""

    def __init__(self, lines: AsyncGenerator[dict[str, Any], None], stack: AsyncExitStack, idle_s: float) -> None:
        super().__init__(media_type="application/x-ndjson")
        self._lines, self._stack, self._idle_s = lines, stack, idle_s
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._stack:
            left = asyncio.create_task(_until_left(receive))
            try:
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                async with aclosing(self._lines) as lines:
                    async for line in lines:
                        if left.done():
                            return
                        body = json.dumps(line, separators=(",", ":")).encode() + b"\n"
                        async with asyncio.timeout(self._idle_s):
                            await send({"type": "http.response.body", "body": body, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
            finally:
                left.cancel()


async def _until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _last(batcher: ModelStreams, clip: Tensor) -> Any:
    """Return the probabilities after the last frame of a clip `[T, 3, h, w]`, as a stream of its own."""
    key = batcher.open()
    try:
        for frame in clip.split(1):
            answer = await asyncio.wrap_future(batcher.submit(key, frame))
        return answer.result
    finally:
        batcher.drop(key)


def _count(request: Request, name: str, default: int, most: int) -> int:
    text = request.query_params.get(name, str(default))
    if not re.fullmatch(r"[0-9]{1,6}", text) or not 1 <= int(text) <= most:
        raise ProtocolError(name, f"{name} from 1 to {most}", repr(text[:40]))
    return int(text)


def _queries(text: str) -> Queries:
    """Parse "x,y;x,y@frame" into (frame, y, x)."""
    queries = []
    for point in text[:10_000].split(";"):
        match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?),(\d{1,6}(?:\.\d{1,6})?)(?:@(\d{1,7}))?", point, re.ASCII)
        if match is None:
            raise ProtocolError("points", "points=x,y;x,y@frame in pixels", repr(point[:40]))
        queries.append((int(match[3] or 0), float(match[2]), float(match[1])))
    return np.array(queries, np.float32)


def _check_point(x: float, y: float, info: VideoInfo) -> None:
    with suppress(ValueError):
        check_inside(x, y, (info.height_px, info.width_px))
        return
    where = f"x in 0..{info.width_px} and y in 0..{info.height_px} pixels"
    raise ProtocolError("points", where, f"x={x:g}, y={y:g}")
