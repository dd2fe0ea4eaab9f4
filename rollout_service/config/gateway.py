"""Gateway: the service's front door over HTTP, for trainers outside the cluster.

Invariant: nothing listens beyond the loopback address unless callers need a token.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from rollout_service.config.refusal import Refused
from rollout_service.config.secret_free import VariableName
from rollout_service.config.section import Seconds, Section


def is_loopback(host: str) -> bool:
    """Whether a server that listens on this address is reached from its own machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_file(path: str) -> str:
    if not path.startswith("/"):
        raise Refused(f"is {path!r}, which depends on the folder of a process.", "Give an absolute path.")
    return path


_File = Annotated[str, AfterValidator(_check_file)]


class Gateway(Section):
    """The service over HTTP, for trainers outside the cluster, and who may use it."""

    port: int | None = Field(
        None, ge=0, le=65535, description="Port on which every node serves the gateway over HTTP; null: no gateway."
    )
    host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="Address where the port listens on each node; 0.0.0.0: every address, which needs tokens.",
    )
    tokens_file: _File | None = Field(
        None,
        description="Absolute path, on the nodes, of the file that lists who may call; null: see tokens_var. It is "
        "read again when it changes.",
    )
    tokens_var: VariableName | None = Field(
        None,
        description="NAME of the environment variable that lists who may call, where the service is started; null, "
        "without tokens_file: whoever reaches the loopback address.",
    )
    tls_certificate: _File | None = Field(
        None, description="Absolute path, on the nodes, of the certificate chain in PEM form; null: no TLS."
    )
    tls_key: _File | None = Field(None, description="Absolute path, on the nodes, of the certificate's private key.")
    body_bytes: int = Field(1 << 20, ge=1024, le=1 << 30, description="Most bytes of one request to the gateway.")
    body_seconds: Seconds = Field(30.0, description="Seconds in which the body of a request must arrive.")
    requests_per_second: float = Field(
        100.0, gt=0, le=1e6, description="Requests per second that one token may make in the long run."
    )
    most_held_groups: int = Field(
        16,
        ge=1,
        le=1024,
        description="Most groups of one collection that the gateway holds until they are acknowledged; with more, none "
        "is taken from the service.",
    )
    idle_seconds: Seconds = Field(
        300.0,
        description="Seconds without any request for a collection after which the gateway cancels it; with "
        "service.journal the collection waits for a reader instead.",
    )

    @property
    def has_tokens(self) -> bool:
        """Whether callers need a token."""
        return self.tokens_file is not None or self.tokens_var is not None

    @model_validator(mode="after")
    def _check_access(self) -> Self:
        if self.tokens_file is not None and self.tokens_var is not None:
            raise Refused("is set, and tokens_var too.", "Leave out one of them.", "gateway.tokens_file")
        if (self.tls_certificate is None) != (self.tls_key is None):
            missing = "tls_key" if self.tls_key is None else "tls_certificate"
            raise Refused("is not set, but the other half of the pair is.", "Set both or none.", f"gateway.{missing}")
        if not is_loopback(self.host) and not self.has_tokens:
            raise Refused(
                f"is {self.host}, beyond the loopback address, but there are no tokens.",
                "Set gateway.tokens_file or gateway.tokens_var; `rollout-service token NAME` makes an entry.",
                "gateway.host",
            )
        return self

    @model_validator(mode="after")
    def _check_effects(self) -> Self:
        if self.port is None:
            shared = {"tokens_file", "tokens_var", "tls_certificate", "tls_key"}  # policy.http_port uses them as well
            own = type(self).model_fields.keys() - shared
            self.check_unset(own, "gateway.", "gateway.port is not set", "Set that too, or leave it out.")
        return self
