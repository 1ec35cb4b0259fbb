"""Text of several views and commands."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from notebook_runner._attempts import attempt, numbered, place
from notebook_runner._printable import BIDI, one_line, size
from notebook_runner._states import advice_of, reason_of, state_name
from notebook_runner._values import from_struct

if TYPE_CHECKING:
    from google.protobuf.descriptor import EnumDescriptor

    from notebook_runner.v1 import notebook_runner_pb2 as pb

__all__ = [
    "LOGIN_ADVICE",
    "LineBuffer",
    "about",
    "advice_lines",
    "age",
    "as_plain",
    "describe_cut",
    "describe_display",
    "dump",
    "elapsed",
    "how_it_ended",
    "how_it_ended_briefly",
    "next_attempt",
    "place_in_queue",
    "repaired",
    "to_json",
]

LOGIN_ADVICE = "Set --token-file or NOTEBOOK_RUNNER_TOKEN_FILE, or log in: notebook-runner login"
"""What to do if the server needs a token."""

_UNSHOWN = re.compile(f"[\x7f-\x9f\u2028\u2029{BIDI}]")
# The exact forms of the Structs of the same names.
_EXACT = ("parameters_json", "results_json")


def dump(value: object) -> str:
    """Return a value as one line of JSON, with control and invisible characters escaped.

    NaN and infinities are strings, because JSON has no such numbers.
    """
    return _escaped(json.dumps(_without_nan(value), ensure_ascii=False))


def _escaped(encoded: str) -> str:
    # JSON itself escapes what is below U+0020.
    return _UNSHOWN.sub(lambda match: f"\\u{ord(match[0]):04x}", encoded)


class LineBuffer:
    """Joins pieces of text to lines; a carriage return restarts the line."""

    def __init__(self) -> None:
        self.pending = ""

    def feed(self, text: str) -> list[str]:
        """Accept a piece of text, and return the lines that it completes."""
        *lines, last = (self.pending + text).split("\n")
        # A return at the very end may be half of a line's end, so it is kept until more comes.
        body = last.rstrip("\r")
        self.pending = body.rsplit("\r", 1)[-1] + last[len(body) :]
        return [line.rstrip("\r").rsplit("\r", 1)[-1] for line in lines]

    def flush(self) -> list[str]:
        """Return the rest as a line, if there is any."""
        line, self.pending = self.pending.rstrip("\r"), ""
        return [line] if line else []


def elapsed(run: pb.Run) -> float | None:
    """Return the duration of an ended run on its worker, in seconds, by the server's clock."""
    if not (run.HasField("start_time") and run.HasField("end_time")):
        return None
    return (run.end_time.ToDatetime() - run.start_time.ToDatetime()).total_seconds()


def about(run: pb.Run) -> str:
    """Return what people know a run by: its name, or where its notebook comes from."""
    return one_line(run.name or run.notebook_path or run.notebook_uri) or "(inline)"


def advice_lines(run: pb.Run) -> list[str]:
    """Return what to do about the exception that ended a run, as one line, if the server says that."""
    advice = one_line(advice_of(run.failure))
    return [f"hint: {advice}"] if advice else []


def how_it_ended(run: pb.Run) -> str:
    """Describe in a sentence how a run ended, with its exception or cause."""
    text = how_it_ended_briefly(run)
    return one_line(f"{text}: {reason_of(run.failure)}") if run.failure.exception_name else text


def how_it_ended_briefly(run: pb.Run) -> str:
    """Describe in a sentence how a run ended; the exception of a cell is left to the traceback."""
    failure = run.failure
    text = f"run {run.run_id} {state_name(run.state)}"
    if failure.HasField("cell_index"):
        text += f" in cell {failure.cell_index + 1} of {run.cells_total}"
    if (took := elapsed(run)) is not None:
        text += f" after {took:.1f} s"
    if number := attempt(run):
        text += f" ({number})"
    if failure.exception_name:
        return one_line(text)
    if run.HasField("failure"):
        text += f": {reason_of(failure)}"
    elif run.output_error:
        text += f", but the notebook was not written to {run.output_uri}: {run.output_error}"
    return one_line(text)


def next_attempt(run: pb.Run) -> str:
    """Say in a sentence which run repeats a run."""
    return one_line(f"repeating it as run {run.retried_by} ({numbered(run, (run.attempt or 1) + 1)})")


def place_in_queue(run: pb.Run) -> str:
    """Describe the place of a queued run."""
    return f"queued, {place(run)}"


def repaired(run: pb.Run) -> str:
    """Describe in one line what the server repaired in the notebook; empty: nothing."""
    return f"repaired: {one_line(' '.join(run.notebook_repairs))}" if run.notebook_repairs else ""


def age(seconds: float) -> str:
    """Format an age in its largest unit: 5s, 12m, 3h, 8d."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{int(seconds // length)}{unit}"
    return f"{int(max(0.0, seconds))}s"


def describe_display(display: pb.DisplayOutput) -> str:
    """Describe rich data that a text view cannot show."""
    named = [f"{item.mime_type} {size(item.size_bytes)}" for item in display.data]
    return one_line(f"[{', '.join([*named, f'{display.omitted} more'] if display.omitted else named)}]")


def describe_cut(cut: pb.OutputCut) -> str:
    """Describe that further output is cut."""
    scope = "run" if cut.whole_run else "cell"
    return f"[output cut: this {scope} reached its limit of {size(cut.limit_bytes)}]"


def to_json(message: Message) -> str:
    """Return a message of the contract as one line of JSON, with the contract's names.

    States, causes and outcomes are names in lower case; numbers are numbers, durations in seconds. NaN and
    infinities are strings, because JSON has no such numbers. Parameters and result values are exact.
    """
    return dump(as_plain(message))


def as_plain(message: Message) -> dict[str, Any]:
    """Return a message of the contract as `to_json` prints it. Fields that are absent are missing."""
    exact = {name.removesuffix("_json"): name for name in _EXACT if name in message.DESCRIPTOR.fields_by_name}
    found: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        content = getattr(message, field.name)
        if field.name in exact.values():
            continue
        if text := getattr(message, exact.get(field.name, ""), ""):
            found[field.name] = json.loads(text)
        elif not field.has_presence or message.HasField(field.name):
            found[field.name] = _plain(content, field)
    return found


def _plain(content: Any, kind: Any) -> Any:
    """Return the content of a field, whose descriptor is given."""
    # Before the others, because Struct and ListValue are also containers.
    if isinstance(content, Message):
        return _plain_message(content)
    if isinstance(content, Mapping):
        return dict(content)
    if isinstance(content, Sequence) and not isinstance(content, str | bytes):
        return [_plain(one, kind) for one in content]
    if isinstance(content, bytes):
        return _text_or_base64(content)
    return _enum_name(content, kind.enum_type) if kind.enum_type else content


def _plain_message(message: Message) -> Any:
    if isinstance(message, Timestamp):
        return message.ToJsonString()
    if isinstance(message, Duration):
        return message.ToNanoseconds() / 1e9
    if isinstance(message, Struct):
        return from_struct(message)
    return as_plain(message)


def _enum_name(number: int, kind: EnumDescriptor) -> str | int:
    value = kind.values_by_number.get(number)
    # A newer server may know values that this client does not.
    prefix = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.name).upper()
    return value.name.removeprefix(f"{prefix}_").lower() if value else number


def _text_or_base64(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return base64.b64encode(content).decode()


def _without_nan(value: Any) -> Any:
    """Return a value whose numbers JSON has."""
    if isinstance(value, dict):
        return {name: _without_nan(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_nan(one) for one in value]
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
