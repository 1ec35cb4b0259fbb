"""Templates that are compiled once: nbconvert compiles them again for each page, which takes longest here."""

from collections import defaultdict
from collections.abc import Iterator

import pytest
from jinja2 import BytecodeCache, Environment
from jinja2.bccache import Bucket
from nbconvert.exporters import TemplateExporter
from typing_extensions import override


class MemoryCache(BytecodeCache):
    """Keeps what Jinja has compiled; each template is looked up by its name, file and source."""

    def __init__(self) -> None:
        self._compiled: dict[str, bytes] = {}

    @override
    def load_bytecode(self, bucket: Bucket) -> None:
        """Fills in what was compiled; Jinja checks that it is of this source."""
        if bucket.key in self._compiled:
            bucket.bytecode_from_string(self._compiled[bucket.key])

    @override
    def dump_bytecode(self, bucket: Bucket) -> None:
        """Keeps what was just compiled."""
        self._compiled[bucket.key] = bucket.bytecode_to_string()


@pytest.fixture(scope="session", autouse=True)
def _templates_are_compiled_once() -> Iterator[None]:
    """Each class of exporters has a cache of its own, because LaTeX has another syntax of templates."""
    caches: dict[type, MemoryCache] = defaultdict(MemoryCache)
    create = TemplateExporter._create_environment

    def cached(self: TemplateExporter) -> Environment:
        environment: Environment = create(self)  # type: ignore[no-untyped-call] # nbconvert's
        environment.bytecode_cache = caches[type(self)]
        return environment

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TemplateExporter, "_create_environment", cached)
        yield
