"""JSON that is nearly a notebook, or none at all, for tests that no document can break the server."""

import json
from typing import Any

from hypothesis import strategies as st

from tests.support.notebooks import code, content
from tests.support.public_notebooks import notebook_paths

# Small ones: they have every kind of cell and output, and mutations are not lost in them.
REAL = [data for path in notebook_paths("nbclient") if len(data := path.read_bytes()) < 6000]
SEEDS = [*REAL, content(code("a = 1", "parameters"), "a"), content()]

strange = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.sampled_from([0, -1, 3, 4, 5, 2**63, 1e400, 1.5]),
        st.sampled_from(["", "code", "stream", "python3", "name", "\ud800", "x" * 100, "4"]),
    ),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["name", "a", "output_type", "\ud800"]), inner, max_size=2)
    ),
    max_leaves=4,
)
_KEYS = [
    *("kernelspec", "language_info", "papermill", "tags", "id", "nbformat_minor", "x", "attachments"),
    *("outputs", "execution_count", "execution", "metadata", "source", "cell_type", "widgets"),
]
_NOTEBOOK_KEYS = ["nbformat", "nbformat_minor", "metadata", "cells", "worksheets", *_KEYS]


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every container of a document with each of its keys."""
    if not isinstance(value, (dict, list)):
        return []
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    return [(value, key) for key in keys] + [place for key in keys for place in _places(value[key])]


@st.composite
def strange_documents(draw: st.DrawFn) -> bytes:
    """A good notebook in which some values are others, are gone, or are new."""
    document = json.loads(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 3))):
        places = _places(document)
        if not places:
            break
        container, key = draw(st.sampled_from(places))
        if isinstance(container, dict) and draw(st.booleans()):
            key = draw(st.sampled_from([*_KEYS, key]))
        if draw(st.booleans()) or not isinstance(container, dict):
            container[key] = draw(strange)
        else:
            container.pop(key, None)
    return json.dumps(document).encode()


_any_value = st.recursive(
    strange | st.text(max_size=5) | st.floats() | st.integers(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(_NOTEBOOK_KEYS) | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)
_cells = st.fixed_dictionaries(
    {"cell_type": st.sampled_from(["code", "markdown", "raw", "heading", "poem", "", "\ud800"])},
    optional={
        "source": st.sampled_from(["1", ["1\n", "2"], "%%time\na", "\ud800"]) | _any_value,
        "input": st.just("1"),
        **dict.fromkeys(("id", "metadata", "outputs", "execution_count", "attachments", "x"), _any_value),
    },
)
any_documents = st.one_of(
    _any_value,
    st.fixed_dictionaries(
        {"nbformat": st.sampled_from([4, 4, 4, 3]), "cells": st.lists(_cells | _any_value, max_size=4)},
        optional={
            "nbformat_minor": st.integers(0, 9) | _any_value,
            "metadata": st.dictionaries(st.sampled_from(_KEYS), _any_value, max_size=3) | _any_value,
            "worksheets": st.lists(
                st.fixed_dictionaries({"cells": st.lists(_cells, max_size=2)}), max_size=2
            ),
        },
    ),
).map(lambda document: json.dumps(document).encode())
"""JSON of every shape, most of it with what a notebook needs at least."""
