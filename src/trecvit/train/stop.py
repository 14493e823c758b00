"""SIGINT (Ctrl-C) and SIGTERM during training."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from trecvit.errors import Terminated

_RAISED: dict[int, type[KeyboardInterrupt]] = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}
# `timeout -s INT` and torchrun's agent repeat the terminal's SIGINT; a user is slower.
_SAME_S, _SAME_UNDER_AGENT_S = 0.2, 3.0


class StopSignals:
    """Records SIGINT and SIGTERM in its `with` block, so that training can stop after a whole step.

    A second SIGINT raises KeyboardInterrupt at once. Ignored signals stay ignored; outside of the main thread, where
    Python allows no handlers, it has no effect.

    Args:
        alone: Whether this is the only process of the run. One of several must not leave a step before the others.

    Attributes:
        number: The first signal; 0 before it.
        again: Whether another SIGINT followed.
    """

    def __init__(self, *, alone: bool) -> None:
        self.alone = alone
        self.number = 0
        self.again = False
        self._first_s = 0.0
        self._raises = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in _RAISED:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Raise KeyboardInterrupt or Terminated in the `with` block, which waits or tests and changes no weights."""
        self._raises = self.alone and not self.number
        try:
            yield
        finally:
            self._raises = False

    def _note(self, number: int, _frame: FrameType | None) -> None:
        now_s = time.monotonic()
        if not self.number:
            self.number, self._first_s = number, now_s
        elif number == signal.SIGINT and now_s - self._first_s > (_SAME_S if self.alone else _SAME_UNDER_AGENT_S):
            self.again = True
        if self._raises or self.again:
            self._raises = False
            raise _RAISED[number]
