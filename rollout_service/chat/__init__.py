"""Between messages and tokens: the chat codec, its proof against the template, parsed turns, and the transcript.

Everything that depends on a model family's chat template belongs here. Sampling belongs in `rollout_service.policy`,
and τ²-bench's own message types in `rollout_service.tau2`.
"""

from rollout_service.chat.codec import EMBEDDED_TOKENIZER, ChatCodec

__all__ = ["EMBEDDED_TOKENIZER", "ChatCodec"]
