"""Generate the page of the Python client: each name that the package exports, for mkdocstrings to fill in."""

from __future__ import annotations

import inspect

import notebook_runner


def markdown() -> str:
    """Return the page's generated part."""
    titles = ("Clients", "Runs", "Events", "What they take and answer", "What they raise")
    groups: dict[str, list[str]] = {title: [] for title in titles}
    # The blocking class first, then its counterpart for asyncio.
    for name in sorted(notebook_runner.__all__, key=lambda name: (name.removeprefix("Async"), len(name))):
        value = getattr(notebook_runner, name)
        if not inspect.isclass(value):
            continue
        if issubclass(value, BaseException):
            group = "What they raise"
        elif name.endswith("Client"):
            group = "Clients"
        elif issubclass(value, notebook_runner.RunSnapshot):
            group = "Runs"
        elif issubclass(value, notebook_runner.Event):
            group = "Events"
        else:
            group = "What they take and answer"
        groups[group].append(name)
    parts = []
    for title, names in groups.items():
        parts += [f"## {title}", *(f"::: notebook_runner.{name}" for name in names)]
    return "\n\n".join(parts)
