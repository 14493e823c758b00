"""Classification of many videos with Ray Data: one row is one video, and an interrupted run is resumed.

A folder of results holds `key.json`, which identifies model and settings, and `results.jsonl` with one line for each
video, in the order in which they were finished.
"""

from __future__ import annotations

import json
import logging
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from trecvit.data.manifest import Manifest, Video
from trecvit.data.text import read_json
from trecvit.errors import DataError, VideoError
from trecvit.files import json_text, only_writer, write_json, write_text, writing
from trecvit.model.trecvit import TRecViT
from trecvit.runtime.cluster import ray, room
from trecvit.runtime.predict import classify
from trecvit.video.sources import FilePart

Row = dict[str, Any]
"""`source`, the video's name, with `frames` and `top`, or with `error`."""

_MOST_ATTEMPTS = 3  # at a video whose process dies: the machine may have been lost, or the video be the cause


class Results:
    """A folder of results that is open for writing; see `open_results`.

    Attributes:
        sources: Names of the videos that have a result.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        rows = _read_rows(path)
        self.sources = {str(row["source"]) for row in rows if "error" not in row}
        # Failed videos are tried again, and a process that was killed may have left a part of a line.
        write_text(path, "".join(f"{json_text(row)}\n" for row in rows if "error" not in row))

    def add(self, row: Row) -> None:
        """Write the row of a video.

        Raises:
            StorageError: It could not be written.
        """
        with writing(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(f"{json_text(row)}\n")


@contextmanager
def open_results(folder: Path, key: dict[str, Any]) -> Iterator[Results]:
    """Create or resume a folder of results, with this process as its only writer.

    Args:
        folder: The folder.
        key: Model and settings, as plain JSON values.

    Raises:
        BusyError: Another process writes to it.
        DataError: It has results of another model or other settings, or damaged ones.
        StorageError: It cannot be written.
    """
    with only_writer(folder):
        path = folder / "key.json"
        before = read_json(path) if path.exists() else key
        if not isinstance(before, dict):
            raise DataError(f"{path}: expected a JSON object, got a {type(before).__name__}; give another folder")
        if before != key:
            changed = ", ".join(f"{name}={before.get(name)}" for name in key if before.get(name) != key[name])
            raise DataError(
                f"{folder}: expected a folder of results for the same settings, got {changed}; give another"
            )
        write_json(path, key)
        yield Results(folder / "results.jsonl")


def classify_corpus(
    manifest: Manifest,
    load: Callable[[], TRecViT],
    results: Results,
    *,
    num_clips: int,
    top_k: int,
    num_actors: int | None = None,
    num_gpus: int = 0,
) -> Iterator[Row]:
    """Classify the videos without a result in Ray actors, as `trecvit.runtime.predict.classify` does.

    Args:
        manifest: The videos, in files that all machines of the cluster can read.
        load: Loads the model, in each actor.
        results: Receives the rows.
        num_clips: Clips to average over.
        top_k: Number of classes.
        num_actors: Processes; by default one for each CPU, or GPU, of the cluster.
        num_gpus: GPUs of each actor.

    Yields:
        Each row once it is written. A video that cannot be read, has no file, or ends its process has an `error`.

    Raises:
        TRecViTError: The model could not be loaded.
        StorageError: A row could not be written.
    """
    left = [video for video in manifest.videos if video.name not in results.sources]
    missing: list[Row] = [{"source": name, "error": f"{name}: listed without a file"} for name in manifest.missing]
    for result in chain(missing, _classified(left, load, num_clips, top_k, num_actors, num_gpus)):
        if isinstance(result, Exception):
            raise result
        results.add(result)
        yield result


def _classified(
    videos: list[Video],
    load: Callable[[], TRecViT],
    num_clips: int,
    top_k: int,
    num_actors: int | None,
    num_gpus: int,
) -> Iterator[Row | Exception]:
    if not videos:
        return
    import ray.data as ray_data

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    ray_data.DataContext.get_current().enable_progress_bars = False
    size = num_actors or max(1, int(room("GPU" if num_gpus else "CPU")))
    rows = ray_data.from_items(
        [{"video": pickle.dumps(_absolute(video))} for video in videos], override_num_blocks=len(videos)
    )
    classify_row: Any = _Classifier  # Ray's annotation of `map` has functions only
    classified = rows.map(
        classify_row,
        fn_constructor_args=(load, num_clips, top_k, ray.remote(_Attempts).options(num_cpus=0).remote()),
        # One video at a time, so that one that ends its process takes no other with it.
        compute=ray_data.ActorPoolStrategy(size=min(size, len(videos)), max_tasks_in_flight_per_actor=1),
        num_cpus=1,
        num_gpus=num_gpus,
    )
    for batch in classified.iter_batches(batch_size=None, prefetch_batches=0):
        for content in batch["result"]:
            yield pickle.loads(content)


class _Attempts:
    """An actor that counts how often each video was begun: Ray Data repeats one whose process died without end."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def begin(self, name: str) -> int:
        """Count one more, and return how many there are."""
        self._counts[name] += 1
        return self._counts[name]


class _Classifier:
    """A model in an actor of Ray Data."""

    def __init__(self, load: Callable[[], TRecViT], num_clips: int, top_k: int, attempts: Any) -> None:
        self._load, self._num_clips, self._top_k, self._attempts = load, num_clips, top_k, attempts

    @cached_property
    def _model(self) -> TRecViT:
        return self._load()

    def __call__(self, row: dict[str, bytes]) -> dict[str, bytes]:
        # Results and errors travel as bytes: names of files may be no text, and an error that is raised here would
        # reach the caller as a text of Ray's.
        return {"result": pickle.dumps(self._result(pickle.loads(row["video"])))}

    def _result(self, video: Video) -> Row | Exception:
        try:
            if ray.get(self._attempts.begin.remote(video.name)) > _MOST_ATTEMPTS:
                reason = f"its process died {_MOST_ATTEMPTS} times, for lack of memory or by an error in a codec"
                raise VideoError(str(video.source), reason)
            prediction = classify(self._model, video.source, num_clips=self._num_clips, top_k=self._top_k)
            return prediction.to_dict(video.name)
        except VideoError as error:
            return {"source": video.name, "error": str(error)}
        except Exception as error:
            return error


def _absolute(video: Video) -> Video:
    """Return a video with an absolute path: Ray's processes have other working folders."""
    source = video.source
    whole = replace(source, path=source.path.absolute()) if isinstance(source, FilePart) else source.absolute()
    return replace(video, source=whole)


def _read_rows(path: Path) -> list[Row]:
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    rows = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            row = json.loads(line)
            rows.append({**row, "source": row["source"]})
        except (ValueError, TypeError, KeyError) as exc:
            raise DataError(
                f"{path}, line {number}: expected the row of a video, got {line[:80]!r}; remove it"
            ) from exc
    return rows
