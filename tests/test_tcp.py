"""A server is found to listen by one connection; an address that cannot be one is a clear error."""

from __future__ import annotations

import socket

import pytest

from rollout_service.tcp import check_listening


@pytest.mark.parametrize("address", ["http://127.0.0.1:{}/v1", "127.0.0.1:{}", "ray://localhost:{}"])
def test_a_port_is_found_open_while_a_server_listens_and_closed_after(address):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = address.format(server.getsockname()[1])
        check_listening(address)
    with pytest.raises(OSError, match="refused"):
        check_listening(address)


@pytest.mark.parametrize("address", ["", "http://", "http:///v1", "http://host:99999"])
def test_an_address_without_host_or_with_a_bad_port_is_refused(address):
    with pytest.raises(ValueError, match=r"it has no host|Port out of range"):
        check_listening(address)
