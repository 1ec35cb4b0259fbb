"""Lets methods answer with responses that they have serialized themselves, which saves work and copies."""

from __future__ import annotations

import grpc

from notebook_runner_server.api.interceptor import Handler, Interceptor, function_of

METHODS = frozenset("/notebook_runner.v1.NotebookRunner/" + name for name in ("Progress", "Watch", "Output"))
"""The methods whose responses are bytes."""


class SerializedResponses(Interceptor):
    """Takes the serializer from the handlers of `METHODS`; the innermost interceptor."""

    def wrap(self, method: str, handler: Handler) -> Handler:
        """Return a handler whose responses are sent as they are."""
        if method not in METHODS:
            return handler
        make = (
            grpc.unary_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.unary_unary_rpc_method_handler
        )
        return make(function_of(handler), handler.request_deserializer)
