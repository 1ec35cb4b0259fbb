"""Lets a method answer with responses that it has serialized itself, once for all who get them."""

from __future__ import annotations

import grpc

from notebook_runner_server.api.interceptor import Handler, Interceptor, function_of

METHODS = frozenset(["/notebook_runner.v1.NotebookRunner/Progress"])
"""The methods whose responses are bytes."""


class SerializedResponses(Interceptor):
    """Takes the serializer from the handlers of `METHODS`; the innermost interceptor."""

    def wrap(self, method: str, handler: Handler) -> Handler:
        """Return a handler whose responses are sent as they are."""
        if method not in METHODS:
            return handler
        return grpc.unary_stream_rpc_method_handler(function_of(handler), handler.request_deserializer)
