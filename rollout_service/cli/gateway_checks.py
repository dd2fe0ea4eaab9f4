"""What `doctor` says of the service over HTTP: where it listens, who may call, and the certificate.

Invariant: nothing is sent, and no token or hash is shown.
"""

from __future__ import annotations

from datetime import UTC, datetime

import rollout_service.tcp as tcp
from rollout_service.cli.finding import NotChecked
from rollout_service.config import RolloutConfig
from rollout_service.errors import RolloutError
from rollout_service.gateway import guard
from rollout_service.gateway.certificate import check_certificate


def _listens(config: RolloutConfig) -> list[tuple[str, int]]:
    """Hosts and ports where the service listens."""
    policy, gateway = config.policy, config.gateway
    asked = {(policy.http_host, policy.http_port), (gateway.host, gateway.port)}
    return sorted((host, number) for host, number in asked if number is not None)


def served_at(config: RolloutConfig) -> str:
    """Where the service listens."""
    listens = _listens(config)
    if not listens:
        return "none: the service is reached from within the cluster only (gateway.port)"
    scheme = "http" if config.gateway.tls_certificate is None else "https"
    served = "the gateway" if config.gateway.port is not None else "the replicas' /generate"
    return f"{served} at {', '.join(f'{scheme}://{host}:{port}' for host, port in listens)}"


def port(config: RolloutConfig, address: str | None) -> str:
    """Whether the ports are free.

    Raises:
        RolloutError: one is not.
        NotChecked: the service runs on another machine.
    """
    listens = _listens(config)
    if not listens:
        return "none is needed"
    if address is not None:
        raise NotChecked("whether the port is free on the cluster's nodes, where Ray Serve may have it already")
    for host, number in listens:
        try:
            tcp.check_free(host, number)
        except OSError as error:
            raise RolloutError(
                f"Port {number} of {host} cannot be used: {error.strerror or error}.",
                "Stop the server that has it, or set another gateway.port (policy.http_port).",
            ) from None
    return f"{', '.join(str(number) for _, number in listens)}: free on this machine"


def tokens(config: RolloutConfig) -> str:
    """Who may call.

    Raises:
        RolloutError: nobody may, or the tokens cannot be read.
    """
    if not config.gateway.has_tokens:
        return "none: whoever reaches the loopback address may call" if _listens(config) else "none is needed"
    found = guard.tokens_of(config.gateway)
    holders, now = [] if found is None else found.holders, datetime.now(UTC)
    valid = [f"{each.name} ({', '.join(sorted(each.scopes))})" for each in holders if not each.is_expired(now)]
    expired = [f"{each.name} on {each.expires:%Y-%m-%d}" for each in holders if each.is_expired(now)]
    if not valid:
        said = f"All have expired: {', '.join(expired)}." if expired else "There is no token, so nobody may call."
        raise RolloutError(said, "Append an entry with `rollout-service token NAME`.")
    return ", ".join(valid) + (f"; expired: {', '.join(expired)}" if expired else "")


def certificate(config: RolloutConfig) -> str:
    """Until when the certificate is valid.

    Raises:
        RolloutError: it is not valid now, or does not fit its key.
    """
    ends = check_certificate(config.gateway)
    if ends is None:
        return "none: HTTP without TLS" if _listens(config) else "none is needed"
    return f"fits its key, valid until {ends:%Y-%m-%d}"
