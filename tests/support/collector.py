"""A collector of traces: the service of OTLP, as its own stubs have it, on a free port of this machine."""

import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as otlp_grpc
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from typing_extensions import override

SECONDS = 60.0


class Collector(otlp_grpc.TraceServiceServicer):
    """Keeps the spans that it is sent, between `with` and its end."""

    def __init__(self) -> None:
        self._news = threading.Condition()
        self._spans: list[Span] = []
        self.resources: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        self._server = grpc.server(ThreadPoolExecutor(2))
        otlp_grpc.add_TraceServiceServicer_to_server(self, self._server)  # type: ignore[no-untyped-call] # it has no types
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(0).wait()

    @override
    def Export(
        self,
        request: otlp.ExportTraceServiceRequest,
        context: Any,
    ) -> otlp.ExportTraceServiceResponse:
        """Takes spans."""
        with self._news:
            for one in request.resource_spans:
                self.resources.append(values(one.resource.attributes))
                self._spans += [span for scope in one.scope_spans for span in scope.spans]
            self._news.notify_all()
        return otlp.ExportTraceServiceResponse()

    def of(self, run_id: str) -> list[Span]:
        """The spans of a run, its own first, then its cells by their order; waits for the run's."""

        def found() -> Span | None:
            named = (span for span in self._spans if values(span.attributes).get("run_id") == run_id)
            return next(named, None)

        with self._news:
            assert self._news.wait_for(lambda: found() is not None, SECONDS), "no span of the run"
            own = found()
            assert own is not None
            below = [span for span in self._spans if span.parent_span_id == own.span_id]
            return [own, *sorted(below, key=lambda span: span.start_time_unix_nano)]

    def all(self) -> list[Span]:
        """Every span so far."""
        with self._news:
            return list(self._spans)


def values(attributes: Iterable[KeyValue]) -> dict[str, Any]:
    """Attributes by their names, without the prefix of those that are the project's own."""
    return {
        one.key.removeprefix("notebook_runner."): getattr(one.value, str(one.value.WhichOneof("value")))
        for one in attributes
    }
