"""Result files of `scripts/gpu`: one per part, rewritten after every case, so that a rerun skips what is done."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import date
from hashlib import sha256
from pathlib import Path
from typing import Any

from trecvit.files import write_text

ROOT = Path(__file__).parents[2]


@dataclass
class Results:
    """The cases of one part.

    Attributes:
        path: The JSON file.
        key: The machine, the versions and the code that a result holds for.
        cases: For each finished case `key`, `date`, `seconds`, and `result` or `failed`, the reason.
    """

    path: Path
    key: str
    cases: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, key: str) -> Results:
        """Read a file, if there is one; results of other machines or code stay until they are measured again."""
        cases = json.loads(path.read_text(encoding="utf-8"))["cases"] if path.exists() else {}
        return cls(path, key, cases)

    @property
    def current(self) -> dict[str, dict[str, Any]]:
        """The cases that ran on this machine with this code."""
        return {name: case for name, case in self.cases.items() if case["key"] == self.key}

    def failed(self, names: list[str]) -> list[str]:
        """Cases that ran and failed."""
        current = self.current
        return [name for name in names if "failed" in current.get(name, {})]

    def left(self, names: list[str]) -> list[str]:
        """Cases still to be run: first those that never were, then those that failed."""
        current = self.current
        return [name for name in names if name not in current] + self.failed(names)

    def add(self, name: str, outcome: dict[str, Any], seconds: float, about: dict[str, Any]) -> None:
        """Write a case's outcome."""
        self.cases[name] = {"key": self.key, "date": date.today().isoformat(), "seconds": round(seconds, 1), **outcome}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, json.dumps({"about": about, "cases": self.cases}, indent=1) + "\n")


def code_hash(*patterns: str) -> str:
    """Return a hash of the package's code and of these files of the checkout, 12 hexadecimal digits."""
    digest = sha256()
    for pattern in ("src/trecvit/**/*.py", "tools/gpu/device.py", *patterns):
        for path in sorted(ROOT.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
