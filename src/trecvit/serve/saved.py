"""Sessions in a folder: state and record are replaced together, so a server that is killed leaves whole ones."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trecvit.errors import StateError
from trecvit.files import only_writer, write_json
from trecvit.model.state import StreamState

_RECORD = re.compile(r"[0-9a-f]{16}\.json")


@dataclass(frozen=True)
class SessionRecord:
    """What a session is beside its state.

    Attributes:
        id: Public id.
        token_hash: SHA-256 of its token, in hexadecimal digits.
        model: Name of its model.
        frame: Number of the last frame that the state has seen; None for none.
        seen: Frames that the state has seen since it began.
        dropped: Frames that were replaced before they were processed.
        slots: `PointSlots.to_dict`, or None for a classifier.
        refs: Ids of the points and the client's names for them.
        last_result: Text of the last result, for a client that did not receive it.
    """

    id: str
    token_hash: str
    model: str
    frame: int | None
    seen: int
    dropped: int
    slots: dict[str, Any] | None
    refs: tuple[tuple[int, str], ...]
    last_result: str | None


class SessionFolder:
    """A folder of sessions, with this process as its only writer.

    A record names its state's file. It is replaced after the new state was written, and the old state's file is removed
    after that: whenever the process ends, record and state belong together.

    Args:
        folder: Created if needed.
        max_bytes: When the files are larger, the sessions that were written longest ago are removed.

    Raises:
        BusyError: Another process uses the folder.
        StorageError: It cannot be written.
    """

    def __init__(self, folder: str | Path, *, max_bytes: int) -> None:
        self._folder, self._max_bytes = Path(folder), max_bytes
        self._stack = ExitStack()
        self._stack.enter_context(only_writer(self._folder))
        self._count = 0
        self._bytes: dict[str, int] = {}  # by session, oldest first
        try:
            self._read_folder()
        except BaseException:
            self._stack.close()
            raise

    def close(self) -> None:
        """Release the folder."""
        self._stack.close()

    def save(self, record: SessionRecord, state: StreamState) -> None:
        """Write a session, replacing an earlier version of it.

        Raises:
            StorageError: It could not be written; the earlier version is kept.
        """
        self._count += 1
        before = self._state_file(record.id)
        path = self._folder / f"{record.id}-{self._count}.safetensors"
        state.save(path)
        write_json(self._record(record.id), {**asdict(record), "state": path.name})
        if before is not None and before != path:
            before.unlink(missing_ok=True)
        self._bytes.pop(record.id, None)
        self._bytes[record.id] = path.stat().st_size
        while sum(self._bytes.values()) > self._max_bytes and len(self._bytes) > 1:
            self.delete(next(iter(self._bytes)))

    def load(
        self, session_id: str, kind_of: Callable[[str], type[StreamState]]
    ) -> tuple[SessionRecord, StreamState] | None:
        """Read a session; None if it was never saved.

        Args:
            session_id: Its public id.
            kind_of: The class of a model's state, by the model's name.

        Raises:
            StateError: Its files are damaged.
        """
        if not _RECORD.fullmatch(f"{session_id}.json") or not self._record(session_id).exists():
            return None
        try:
            content = json.loads(self._record(session_id).read_text(encoding="utf-8"))
            state = kind_of(content["model"]).load(self._folder / Path(content.pop("state")).name)
            content["refs"] = tuple((int(point_id), str(ref)) for point_id, ref in content["refs"])
            return SessionRecord(**content), state
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise StateError(f"expected the files of session {session_id}, got damaged ones: {exc}") from exc

    def delete(self, session_id: str) -> None:
        """Remove a session, if there is one."""
        state = self._state_file(session_id)
        self._record(session_id).unlink(missing_ok=True)
        if state is not None:
            state.unlink(missing_ok=True)
        self._bytes.pop(session_id, None)

    def _record(self, session_id: str) -> Path:
        return self._folder / f"{session_id}.json"

    def _state_file(self, session_id: str) -> Path | None:
        with suppress(OSError, ValueError, KeyError, TypeError):
            content = json.loads(self._record(session_id).read_text(encoding="utf-8"))
            return self._folder / Path(content["state"]).name
        return None

    def _read_folder(self) -> None:
        """Count the sessions, and remove states without a record, which a killed process may leave."""
        records = sorted(self._folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
        states: set[Path] = set()
        for path in records:
            if _RECORD.fullmatch(path.name) and (state := self._state_file(path.stem)) is not None and state.exists():
                states.add(state)
                self._bytes[path.stem] = state.stat().st_size
        for path in self._folder.glob("*-*.safetensors*"):
            number = re.fullmatch(r"[0-9a-f]{16}-(\d+)\.safetensors(\.part-\d+)?", path.name)
            if number is None:
                continue
            self._count = max(self._count, int(number[1]))
            if path not in states:
                path.unlink(missing_ok=True)
