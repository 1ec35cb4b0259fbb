"""The webhooks themselves: CloudEvents 1.0 in JSON, signed as Standard Webhooks says."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from cloudevents.core.bindings.http import to_structured_event
from cloudevents.core.v1.event import CloudEvent
from google.protobuf import json_format
from standardwebhooks import Webhook

from notebook_runner import __version__
from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner_server.api import convert
from notebook_runner_server.runs.deliveries import Delivery

TYPE_STARTED = "notebook_runner.run.started.v1"
TYPE_ENDED = "notebook_runner.run.ended.v1"

MAX_BYTES = 1024 * 1024
"""Maximum size of the data of an event; the largest fields of a run that is larger are left out."""

_EPOCH = datetime.fromtimestamp(0, UTC)
_ALWAYS = ("runId", "state", "owner")


def message_id(delivery: Delivery) -> str:
    """Return the id of a webhook, which is the same in each attempt and for each receiver."""
    return f"msg_{delivery.run_id}_{'ended' if delivery.state.is_terminal else 'started'}"


def encode(delivery: Delivery) -> bytes:
    """Return the body of a webhook; blocks for as long as it takes to serialize a run."""
    data, omitted = _data(delivery)
    attributes: dict[str, Any] = {
        "id": message_id(delivery),
        "source": f"urn:notebook-runner:{delivery.history_id}",
        "type": TYPE_ENDED if delivery.state.is_terminal else TYPE_STARTED,
        "subject": delivery.run_id,
        "datacontenttype": "application/json",
    }
    if delivery.time:
        attributes["time"] = _EPOCH + timedelta(microseconds=delivery.time // 1000)
    # Names of extensions have only lower-case letters and digits.
    if omitted:
        attributes["omittedfields"] = ",".join(omitted)
    if delivery.run is None:
        attributes["rundeleted"] = True
    body: bytes = to_structured_event(CloudEvent(attributes, data)).body
    return body


def headers(delivery: Delivery, body: bytes, secrets: Sequence[str], now: datetime) -> Mapping[str, str]:
    """Return the headers of an attempt to deliver a webhook.

    Args:
        delivery: What it tells.
        body: Its body.
        secrets: What to sign it with: a signature for each.
        now: The time of the attempt, in UTC.
    """
    name = message_id(delivery)
    signatures = [Webhook(secret).sign(name, now, body.decode()) for secret in secrets]
    return {
        "content-type": "application/cloudevents+json; charset=UTF-8",
        "user-agent": f"notebook-runner/{__version__}",
        "webhook-id": name,
        "webhook-timestamp": str(int(now.timestamp())),
        **({"webhook-signature": " ".join(signatures)} if signatures else {}),
    }


def _data(delivery: Delivery) -> tuple[dict[str, Any], Sequence[str]]:
    """Return the run as in the contract's JSON, and the fields that are left out."""
    run = delivery.run
    if run is None:
        known = pb.Run(run_id=delivery.run_id, state=convert.run_state(delivery.state), owner=delivery.owner)
        return json_format.MessageToDict(known), ()
    data = json_format.MessageToDict(convert.run_message(replace(run, queue_position=None)))
    sizes = {name: len(json.dumps(value)) for name, value in data.items()}
    omitted: list[str] = []
    while sum(sizes.values()) > MAX_BYTES:
        largest = max((name for name in sizes if name not in _ALWAYS), key=sizes.__getitem__)
        omitted.append(largest)
        del sizes[largest], data[largest]
    return data, omitted
