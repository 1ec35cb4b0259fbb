"""The server's pod with webhooks: the Secret that it mounts is read by the server, and by no notebook."""

from collections.abc import Callable

from tests.container.deployed import Deployed
from tests.container.manifests import FOLDER, container_of, find, rendered, variables
from tests.support.calls import inline
from tests.support.receivers import WebhookReceiver, new_secret, table

READ = "try:\n    print(open({path!r}).read())\nexcept OSError:\n    print('denied')"


def test_webhooks_are_sent(deploy: Callable[..., Deployed]) -> None:
    """A receiver of the Secret gets the end of a run, signed, and the file is closed to its notebook."""
    found = rendered(FOLDER / "overlays/webhooks")
    path = variables(container_of(find(found, "Deployment")))["NOTEBOOK_RUNNER_WEBHOOKS_FILE"]
    secret = new_secret()
    with WebhookReceiver() as receiver:
        files = {"webhooks.toml": f"[webhooks.pod]\n{table(receiver, secret)}\n"}
        deployed = deploy(manifests=found, secrets={"notebook-runner-webhooks": files})
        with deployed.client() as client:
            ended = client.start(inline(READ.format(path=path)).notebook_content).wait()
            assert ended.text == "denied\n"
        (arrived,) = receiver.wait(1)
    event = arrived.event(secret)
    assert (event["subject"], event["data"]["state"]) == (ended.id, "RUN_STATE_SUCCEEDED")
    assert deployed.pod.execute("stat", "-L", "--format=%a %u %g", path) == "440 0 65532\n"
