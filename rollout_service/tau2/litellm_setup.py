"""litellm, set up for the service. Importing this module takes seconds: do it only where a language model is asked.

Invariant: no request of ours goes through litellm before this module set it up.
"""

from __future__ import annotations

import logging

import httpx
import litellm

from rollout_service.redaction import keep_out_of_logs
from rollout_service.tau2 import paced

keep_out_of_logs("LiteLLM", "httpx", "openai._base_client")  # they write the address, with what it holds
litellm.suppress_debug_info = True
litellm.completion = paced.listening(litellm.completion)
if litellm.client_session is None:
    # litellm's own pool ends at 100 connections: with more slots than that, a user that hangs would stall others.
    litellm.client_session = httpx.Client(limits=httpx.Limits(), follow_redirects=True)
_session = litellm.client_session


def settle() -> None:
    """Undo what τ²'s own module changes when it is imported: upstream's gives litellm a pool of 10 connections, and
    lets it log warnings."""
    litellm.client_session = _session
    logging.getLogger("LiteLLM").setLevel(logging.CRITICAL)
