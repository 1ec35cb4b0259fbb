"""A name server that says where a name is now."""

from typing import Self

from dnslib import QTYPE, RCODE, RR, A, DNSRecord  # type: ignore[import-untyped] # it has no types
from dnslib.server import BaseResolver, DNSLogger, DNSServer  # type: ignore[import-untyped] # it has no types
from typing_extensions import override


class NameServer(BaseResolver):  # type: ignore[misc] # dnslib has no types
    """Answers every question for an address with `address`, and everything else with nothing.

    While `address` is empty there is no such name, as while a pod is replaced.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._server = DNSServer(self, address="127.0.0.1", port=0, logger=DNSLogger(logf=lambda _: None))

    def __enter__(self) -> Self:
        self._server.start_thread()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()
        self._server.server.server_close()

    def target(self, name: str, port: str | int) -> str:
        """The target of a channel that asks this server for the name."""
        return f"dns://127.0.0.1:{self._server.server.server_address[1]}/{name}:{port}"

    @override
    def resolve(self, request: DNSRecord, handler: object) -> DNSRecord:
        """Answers a question."""
        reply = request.reply()
        if not self.address:
            reply.header.rcode = RCODE.NXDOMAIN
        elif request.q.qtype == QTYPE.A:
            reply.add_answer(RR(request.q.qname, QTYPE.A, rdata=A(self.address)))
        return reply
