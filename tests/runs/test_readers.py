"""Who reads which run, so that retention waits for them."""

import time

import pytest

from notebook_runner_server.runs.retention import PAGE_SECONDS, Readers


def test_readers_are_counted() -> None:
    """Two streams of one run are two; a page counts for a while; nobody else is meant."""
    readers = Readers()
    assert not readers.is_read("one")
    with readers.stream("one"):
        with readers.stream("one"):
            assert readers.is_read("one")
        assert readers.is_read("one")
        assert not readers.is_read("two")
    assert not readers.is_read("one")
    readers.page("two")
    assert readers.is_read("two")
    assert not readers.is_read("one")


def test_a_page_is_followed_by_the_next_one_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has read a page of a run reads the run for a minute more, from the newest page on."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    readers = Readers()
    readers.page("one")
    now = PAGE_SECONDS - 1
    assert readers.is_read("one")
    readers.page("two")
    now = PAGE_SECONDS
    assert not readers.is_read("one")
    assert readers.is_read("two")
    readers.page("two")
    now = 2 * PAGE_SECONDS - 1
    assert readers.is_read("two")


def test_a_stream_that_fails_is_closed() -> None:
    """A run whose reader went away by an error is not read for ever."""
    readers = Readers()
    with pytest.raises(ZeroDivisionError), readers.stream("one"):
        raise ZeroDivisionError
    assert not readers.is_read("one")
