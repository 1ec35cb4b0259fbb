"""Clients and servers of other versions of the contract: it only grows, so each reads what it knows.

An earlier client is one whose messages lack the fields that came later; a later client sends fields and calls
methods that this server does not know.
"""

from collections.abc import Callable
from typing import Any

import grpc
from google.api import annotations_pb2
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import SECONDS, inline, perform
from tests.support.errors import refused
from tests.support.server import SERVICE, Server

PACKAGE = "notebook_runner.v1"
# The highest number of a field of each message before runs had names.
EARLIER = {"StartRequest": 19, "ProgressRequest": 4, "DisplayOutput": 3, "MimeData": 2, "Run": 20}
# A field of number 999 with the text "later", as a later version may add one.
LATER = b"\xba\x3e\x05later"


def earlier_messages() -> Callable[[str], type[Message]]:
    """Return the message classes by name, as code that was generated from the earlier contract has them."""
    pool = descriptor_pool.DescriptorPool()
    file = descriptor_pb2.FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(file)
    # The paths of HTTP, which earlier contracts do not have.
    file.ClearField("service")
    file.dependency.remove(annotations_pb2.DESCRIPTOR.name)
    for dependency in pb.DESCRIPTOR.dependencies:
        if dependency.name in file.dependency:
            pool.AddSerializedFile(dependency.serialized_pb)
    for message in file.message_type:
        most = EARLIER.get(message.name, 999)
        kept = [one for one in message.field if one.number <= most]
        # proto3 represents each optional field by a oneof of its own, of which none may be empty.
        used = sorted({one.oneof_index for one in kept if one.HasField("oneof_index")})
        oneofs = [message.oneof_decl[index] for index in used]
        for one in kept:
            if one.HasField("oneof_index"):
                one.oneof_index = used.index(one.oneof_index)
        names = [descriptor_pb2.OneofDescriptorProto.FromString(one.SerializeToString()) for one in oneofs]
        fields = [descriptor_pb2.FieldDescriptorProto.FromString(one.SerializeToString()) for one in kept]
        message.ClearField("field")
        message.ClearField("oneof_decl")
        message.field.extend(fields)
        message.oneof_decl.extend(names)
    pool.AddSerializedFile(file.SerializeToString())
    return lambda name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))


def test_an_earlier_client(server: Server) -> None:
    """It starts, follows, reads, lists and kills a run; what it does not know is no error."""
    earlier = earlier_messages()

    def call(method: str, **fields: Any) -> Any:
        request = earlier(f"{method}Request")(**fields).SerializeToString()
        if method == "Progress":
            return [earlier("ProgressResponse").FromString(one) for one in server.raw_stream(method, request)]
        return earlier(f"{method}Response").FromString(server.raw(method, request))

    run = call("Start", notebook_content=inline("print('x')").notebook_content).run
    assert not hasattr(run, "name")
    events = call("Progress", run_id=run.run_id)
    assert events[-1].run_changed.state == pb.RUN_STATE_SUCCEEDED
    assert "".join(one.cell_output.stream.text for one in events) == "x\n"
    assert call("List", page_size=1).runs[0].run_id == run.run_id
    assert call("Output", run_id=run.run_id).content
    killed = call("Kill", run_id=run.run_id)
    assert killed.already_ended
    # Even what it does not know survives when it passes the message on.
    assert pb.Run.FromString(killed.run.SerializeToString()).notebook_sha256


def test_a_run_of_an_earlier_server() -> None:
    """A run that an earlier server sends has no name, and says that nothing is known of what it used."""
    run = earlier_messages()("Run")(run_id="a", state=pb.RUN_STATE_SUCCEEDED)
    read = pb.Run.FromString(run.SerializeToString())
    assert (read.run_id, read.name, read.notebook_sha256, read.peak_memory_bytes) == ("a", "", "", 0)
    assert not read.HasField("cpu_time")


def test_a_later_client(server: Server) -> None:
    """Fields of a later version are ignored; a method of one is UNIMPLEMENTED, and the error names others."""
    request = inline("1", name="later").SerializeToString()
    run = pb.StartResponse.FromString(server.raw("Start", request + LATER)).run
    assert run.name == "later"
    requests = {"Get": pb.GetRequest, "Kill": pb.KillRequest, "Output": pb.OutputRequest}
    perform(server.stub, inline("1"))
    for method, kind in requests.items():
        answer = server.raw(method, kind(run_id=run.run_id).SerializeToString() + LATER)
        response: Any = getattr(pb, f"{method}Response").FromString(answer)
        assert response.run.name == "later"
    call: Any = server.channel.unary_unary(f"{SERVICE}Rename")
    refusal = refused(lambda: call(b"", timeout=SECONDS))
    assert refusal.kind == (grpc.StatusCode.UNIMPLEMENTED, "UNKNOWN_METHOD")
    assert "Get" in refusal.message
    assert "Delete" in refusal.message
