"""Text of several views and commands."""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING

from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Value

from notebook_runner._states import cause_name, state_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from notebook_runner.v1 import notebook_runner_pb2 as pb

__all__ = [
    "COLOUR",
    "LineBuffer",
    "age",
    "clean",
    "clock",
    "describe_cut",
    "describe_display",
    "dump",
    "elapsed",
    "how_it_ended",
    "one_line",
    "repaired",
    "size",
    "to_json",
]

# Output of a notebook must not control the terminal: of escape sequences only colours pass, of control
# characters only tab and line feed.
_COLOUR = r"\x1b\[[0-9;:]*m"
_UNSAFE = re.compile(
    rf"({_COLOUR})"
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"  # window titles, links
    r"|\x1b\[[0-?]*[ -/]*[@-~]"  # cursor moves, modes
    r"|\x1b.?"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)
COLOUR = re.compile(_COLOUR)
# They reorder the following text, so that a name could look like another.
_BIDI = "\u202a-\u202e\u2066-\u2069"
_TURNING = re.compile(f"[{_BIDI}]")
_UNSHOWN = re.compile(f"[\x7f-\x9f\u2028\u2029{_BIDI}]")
_DECIMAL = 1000


def clean(text: str, keep: str = "", *, colours: bool = True) -> str:
    """Remove all control sequences from a text except colours.

    Args:
        text: The text.
        keep: Control characters to keep.
        colours: Whether to keep colours.
    """

    def left(match: re.Match[str]) -> str:
        if match[1]:
            return match[1] if colours else ""
        return match[0] if match[0] in keep else ""

    return _UNSAFE.sub(left, text)


def one_line(text: str) -> str:
    """Return a text as one line, without colours and without characters that reorder text."""
    return _TURNING.sub("", clean(" ".join(text.split()), colours=False))


def dump(value: object) -> str:
    """Return a value as one line of JSON, with control and invisible characters escaped."""
    return _escaped(json.dumps(value, ensure_ascii=False))


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


def how_it_ended(run: pb.Run) -> str:
    """Describe in a sentence how a run ended, with its exception or cause."""
    return one_line(_end(run))


def _end(run: pb.Run) -> str:
    failure = run.failure
    text = f"run {run.run_id} {state_name(run.state)}"
    if failure.HasField("cell_index"):
        text += f" in cell {failure.cell_index + 1} of {run.cells_total}"
    if (took := elapsed(run)) is not None:
        text += f" after {took:.1f} s"
    if failure.exception_name:
        return f"{text}: {failure.exception_name}: {failure.exception_message}"
    if run.HasField("failure"):
        return f"{text}: {failure.message.strip() or cause_name(failure.cause)}"
    if run.output_error:
        return f"{text}, but the notebook was not written to {run.output_uri}: {run.output_error}"
    return text


def repaired(run: pb.Run) -> str:
    """Describe in one line what the server repaired in the notebook; empty: nothing."""
    return f"repaired: {one_line(' '.join(run.notebook_repairs))}" if run.notebook_repairs else ""


def clock(seconds: float) -> str:
    """Format a duration like a clock: 0:07, 12:30, 1:02:03."""
    minutes, rest = divmod(int(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def age(seconds: float) -> str:
    """Format an age in its largest unit: 5s, 12m, 3h, 8d."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{int(seconds // length)}{unit}"
    return f"{int(max(0.0, seconds))}s"


def size(count: int) -> str:
    """Format a number of bytes with a unit."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < _DECIMAL:
            return f"{value:.3g} {unit}"
        value /= _DECIMAL
    return f"{value:.3g} GB"


def describe_display(display: pb.DisplayOutput) -> str:
    """Describe rich data that a text view cannot show."""
    named = [f"{item.mime_type} {size(item.size_bytes)}" for item in display.data]
    return one_line(f"[{', '.join([*named, f'{display.omitted} more'] if display.omitted else named)}]")


def describe_cut(cut: pb.OutputCut) -> str:
    """Describe that further output is cut."""
    scope = "run" if cut.whole_run else "cell"
    return f"[output cut: this {scope} reached its limit of {size(cut.limit_bytes)}]"


def to_json(message: Message) -> str:
    """Return a message of the contract as one line of protobuf's JSON, with the contract's names.

    NaN and infinities in parameters become strings, because JSON has no such numbers.
    """
    encoded = json_format.MessageToJson(
        _without_nan(message),
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
        indent=None,
        ensure_ascii=False,
    )
    return _escaped(encoded)


def _without_nan(message: Message) -> Message:
    """Return a message whose Structs have only numbers that JSON has; the same message if they do."""
    if all(math.isfinite(value.number_value) for value in _values(message)):
        return message
    changed = type(message)()
    changed.CopyFrom(message)
    for value in _values(changed):
        number = value.number_value
        if not math.isfinite(number):
            value.string_value = "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
    return changed


def _values(message: Message) -> Iterator[Value]:
    """Yield every value of every Struct in a message."""
    if isinstance(message, Value):
        yield message
    for field, content in message.ListFields():
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            is_map_of_messages = field.message_type.fields_by_name["value"].message_type is not None
            parts = list(content.values()) if is_map_of_messages else []
        else:
            # Struct and ListValue are containers themselves, but messages first.
            parts = [content] if isinstance(content, Message) else list(content)
        for part in parts:
            yield from _values(part)
