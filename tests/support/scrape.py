"""Scrapes a server as Prometheus does."""

import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from prometheus_client.parser import text_string_to_metric_families

from tests.support.polling import pause

ON = ("--metrics-listen", "127.0.0.1:0")
SECONDS = 60.0


class Logged(Protocol):
    """A server, wherever it runs."""

    @property
    def log(self) -> list[dict[str, Any]]:
        """What it has logged."""


@dataclass(frozen=True)
class Page:
    """A page of metrics: each sample by its name and its labels; each metric's type by its name."""

    samples: dict[tuple[str, frozenset[tuple[str, str]]], float]
    types: dict[str, str]

    def value(self, name: str, **labels: str) -> float:
        """One sample; it has to be there."""
        return self.samples[f"notebook_runner_{name}", frozenset(labels.items())]

    def total(self, name: str, **labels: str) -> float:
        """The sum of all samples of a name that have these labels, and perhaps others."""
        full = f"notebook_runner_{name}"
        found = [v for (n, has), v in self.samples.items() if n == full and has >= labels.items()]
        assert found, f"no {full} with {labels}"
        return sum(found)

    def counted(self, name: str) -> dict[tuple[str, ...], float]:
        """The samples of a name that are not zero, by the values of their labels, in the labels' order."""
        full = f"notebook_runner_{name}"
        return {
            tuple(value for _, value in sorted(labels)): number
            for (one, labels), number in self.samples.items()
            if one == full and number
        }


def address(server: Logged) -> str:
    """Where the server has its metrics, as its log tells."""
    (line,) = [entry for entry in server.log if entry["event"] == "metrics_started"]
    return f"http://{line['address']}{line['path']}"


def text(server: Logged) -> str:
    """The page as it is."""
    with urllib.request.urlopen(address(server), timeout=SECONDS) as answer:  # noqa: S310 - the server's own
        assert answer.headers["Content-Type"].startswith("text/plain")
        return str(answer.read().decode())


def scrape(server: Logged) -> Page:
    """The page, read by Prometheus's own parser."""
    families = list(text_string_to_metric_families(text(server)))
    samples = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }
    return Page(samples, {family.name: family.type for family in families})


def until(server: Logged, true: Callable[[Page], bool]) -> Page:
    """Scrapes until something is true that is to become true by itself."""
    end = time.monotonic() + SECONDS
    while not true(page := scrape(server)):
        assert time.monotonic() < end, {k: v for k, v in page.samples.items() if v}
        pause()
    return page
