"""An address that the server cannot listen on is refused with the reason, and with what to do."""

import socket
from pathlib import Path

import pytest

from notebook_runner_server import listening
from tests.support.settings import served

pytestmark = pytest.mark.unit

# TEST-NET-1: documentation only, so no machine has it.
FOREIGN = "192.0.2.1:50051"


@pytest.mark.parametrize("option", ["--listen", "--http-listen", "--metrics-listen"])
def test_a_port_in_use(tmp_path: Path, option: str) -> None:
    """One line names the setting, the address, the reason and the remedy; nothing else is on stderr."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        others = [] if option == "--listen" else ["--listen", "127.0.0.1:0"]
        done = served("--state-dir", str(tmp_path / "state"), *others, option, address)
    assert done.returncode == 1
    told = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert told == [
        f"Error: {option} {address}: another program uses this port. End it, or choose another port."
    ]


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        (FOREIGN, "this machine does not have this address. Choose one of its own, such as 127.0.0.1."),
        (
            "no-such-host.invalid:1",
            "unknown host name. Choose an address of this machine, such as 127.0.0.1.",
        ),
    ],
)
def test_an_address_of_no_use(address: str, reason: str) -> None:
    """Other machines' addresses and unknown names are told apart."""
    with pytest.raises(listening.ListenError) as refused:
        listening.check("--listen", address)
    assert str(refused.value) == f"--listen {address}: {reason}"


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:0", "localhost:0", "0.0.0.0:0"])
def test_a_free_port(address: str) -> None:
    """Whatever the family; a name needs one address of several that can be bound."""
    listening.check("--listen", address)
