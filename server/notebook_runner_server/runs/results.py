"""The result values of a run: by name, the last value of each, within the contract's limits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from notebook_runner_server.execution.interface import ResultValue

MAX_BYTES = 64 * 1024
"""Maximum size of a run's values with their names, as JSON: every message about the run contains them."""

MAX_OMITTED = 100
"""Names without a value that are remembered. Beyond them, such a name counts each time that it comes."""


@dataclass(frozen=True, slots=True)
class Results:
    """The result values of a run.

    Attributes:
        values: The values as JSON, by name, in the order in which the names first came.
        omitted: Names whose last value is left out.
        further: Number of such names that are not remembered.
        size: The size of `to_json`, in bytes.
    """

    values: Mapping[str, str] = field(default_factory=dict)
    omitted: tuple[str, ...] = ()
    further: int = 0
    size: int = 0

    @property
    def number_omitted(self) -> int:
        """Number of names whose value is left out."""
        return len(self.omitted) + self.further

    def with_value(self, result: ResultValue) -> Results:
        """Return the results after a value was displayed."""
        name = result.name
        entry = _entry(name, result.value_json)
        before = _entry(name, self.values[name]) if name in self.values else ""
        rest = self.size - _size(before)
        size = rest + _size(entry)
        if result.value_json and size <= MAX_BYTES:
            others = tuple(one for one in self.omitted if one != name) if self.omitted else ()
            return replace(self, values={**self.values, name: result.value_json}, omitted=others, size=size)
        # An earlier value is not the name's last one.
        values = {one: value for one, value in self.values.items() if one != name}
        if name in self.omitted:
            return self
        if len(self.omitted) < MAX_OMITTED:
            return replace(self, values=values, omitted=(*self.omitted, name), size=rest)
        return replace(self, values=values, further=self.further + 1, size=rest)

    def to_json(self) -> str:
        """Return the values as a JSON object; empty if there are none."""
        entries = ", ".join(_entry(name, value)[:-2] for name, value in self.values.items())
        return f"{{{entries}}}" if entries else ""

    def to_dict(self) -> dict[str, Any]:
        """Return what `from_dict` takes, for the store."""
        return {"values": dict(self.values), "omitted": self.omitted, "further": self.further}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Results:
        """Return the results that `to_dict` was called for."""
        values = data["values"]
        size = sum(_size(_entry(name, value)) for name, value in values.items())
        return cls(values, tuple(data["omitted"]), data["further"], size)


def _entry(name: str, value_json: str) -> str:
    """Return an entry of the JSON object, with its separator; the last one's stands for the brackets."""
    return f"{json.dumps(name, ensure_ascii=False)}: {value_json}, "


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(errors="replace"))
