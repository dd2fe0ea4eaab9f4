"""The link to a gateway: nobody waits for a request that cannot be answered any more."""

from __future__ import annotations

import socket

import pytest

from rollout_service.errors import ServiceError
from rollout_service.gateway.link import Ask, Link


def test_a_request_that_waits_ends_when_the_link_is_closed():
    with socket.create_server(("127.0.0.1", 0)) as mute:
        link = Link(f"http://127.0.0.1:{mute.getsockname()[1]}", None, "client")
        call = link.start(link.ask(Ask("GET", "/v1/status"), bytes))
        connection, _ = mute.accept()
        link.close()
        with connection, pytest.raises(ServiceError, match="client is closed"):
            call.wait(10.0)
    link.close()
    with pytest.raises(ServiceError, match="client is closed"):
        link.start(link.ask(Ask("GET", "/v1/status"), bytes))
