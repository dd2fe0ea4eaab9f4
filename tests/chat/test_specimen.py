"""The conversation that `rollout-service codec` shows."""

from __future__ import annotations

from itertools import chain

from rollout_service.chat.codec import ChatCodec
from rollout_service.chat.specimen import conversation


def test_the_shown_conversation_is_the_template_s_own_with_the_policy_s_turns_marked():
    codec = ChatCodec.load()
    pieces = conversation(codec)
    assert [piece.sampled for piece in pieces] == [False, True, False, True, False]
    whole = list(chain.from_iterable(piece.token_ids for piece in pieces))
    text = codec.decode(whole)
    assert codec.encode_written(text) == whole
    call, answer = (codec.parse(piece.token_ids) for piece in pieces if piece.sampled)
    assert [(c.name, c.arguments) for c in call.calls] == [("find_order", {"order_id": "#W0123", "page": 1})]
    assert answer.content == "It arrives tomorrow."
    assert text.index("shipped") < text.index("It arrives tomorrow.") < text.index("Thank you!")
