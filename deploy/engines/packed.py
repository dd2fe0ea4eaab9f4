"""A Hugging Face causal LM over many sequences at once, each with keys and values of its own.

Invariant: the logits of a sequence follow from its own tokens alone, whatever runs beside it. What a pass feeds is laid
end to end in one row without padding: everything in such a model but attention sees one token at a time, and attention
is done here, sequence by sequence. `PackedModel` proves that of its model before it serves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from torch.nn import functional

from rollout_service.config.sampling import Sampling
from rollout_service.errors import ConfigError

_ATTENTION = "rollout_service_packed"
"""Name under which `_attend` is registered with transformers."""

_PROOF_TOKENS = 12
"""Length of each of the two sequences of the proof."""


class UnsupportedModel(Exception):
    """A model that does not compute the same when sequences share a forward pass."""


class Context:
    """The tokens of one sequence, and the keys and values of those that the model has seen."""

    def __init__(self, tokens: npt.NDArray[np.int32], room: int) -> None:
        """Start with these tokens, int32[n], none of them seen, and room for this many more."""
        self._tokens = np.empty(len(tokens) + room, dtype=np.int32)
        self._tokens[: len(tokens)] = tokens
        self.size = len(tokens)
        """Number of tokens."""
        self.seen = 0
        """Number of tokens, from the first on, that have keys and values."""
        self.bytes = 0
        """Size of the keys and values."""
        self.oldest: int | None = None
        """Oldest version among the weights that computed them; None if there are none."""
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def layers(self) -> int:
        """Number of the model's layers that have stored keys and values here."""
        return len(self._layers)

    def append(self, token: int) -> None:
        """Append a token."""
        self._tokens[self.size] = token
        self.size += 1

    def since(self, start: int, end: int | None = None) -> npt.NDArray[np.int32]:
        """View of the tokens from `start` up to `end` (default: the last), int32[m]."""
        return self._tokens[start : self.size if end is None else end]

    def forget(self) -> None:
        """Drop all keys and values: no token counts as seen."""
        self.seen, self.bytes, self.oldest = 0, 0, None
        self._layers.clear()

    def rewind(self) -> None:
        """Mark the last token as not seen, so that its logits can be computed again."""
        self.seen = min(self.seen, self.size - 1)

    def computed_by(self, version: int) -> None:
        """Record that weights of this version added keys and values. Versions never decrease."""
        self.oldest = version if self.oldest is None else self.oldest

    def common(self, other: Context) -> int:
        """Length of the common prefix with the tokens that `other` has seen. The last token here never counts: the
        model must see it to give its logits."""
        length = min(self.size - 1, other.seen)
        differs = self._tokens[:length] != other._tokens[:length]
        return int(differs.argmax()) if differs.any() else length

    def copy_seen(self, other: Context, count: int) -> None:
        """Copy the keys and values of the first `count` tokens from `other`."""
        self.forget()
        for layer, held in other._layers.items():
            self._hold(layer, [_grown(part[:, :count], _room(count)) for part in held])
        self.seen, self.oldest = count, other.oldest

    def take_seen(self, other: Context) -> None:
        """Take over the keys and values of `other`, which is empty afterwards."""
        self.seen, self.bytes, self._layers = other.seen, other.bytes, other._layers
        self.oldest = other.oldest
        other._layers = {}
        other.forget()

    def extend(self, layer: int, new: tuple[torch.Tensor, torch.Tensor]) -> list[torch.Tensor]:
        """Append keys and values, each [heads, m, width]. Returns all of them, each [heads, seen + m, width].

        `seen` does not change yet, because the pass is not over.
        """
        end = self.seen + new[0].shape[1]
        held = self._layers.get(layer)
        if held is None:
            held = self._hold(layer, [_grown(part[:, :0], _room(end)) for part in new])
        elif held[0].shape[1] < end:
            held = self._hold(layer, [_grown(part, _room(end)) for part in held])
        for whole, part in zip(held, new, strict=True):
            whole[:, self.seen : end] = part
        return [whole[:, :end] for whole in held]

    def _hold(self, layer: int, parts: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        self.bytes += sum(part.nbytes for part in parts) - sum(part.nbytes for part in self._layers.get(layer, ()))
        self._layers[layer] = parts[0], parts[1]
        return self._layers[layer]


Pass = Sequence[tuple[Context, int]]
"""Input of one forward pass: contexts, each with the number of its next unseen tokens to feed."""


class PackedModel:
    """A model and its forward pass. For one thread at a time."""

    def __init__(self, model: Any) -> None:
        """Prepare a `transformers` causal LM for packed passes.

        Raises:
            ConfigError: it does not compute the same in packed passes; models with other than plain attention do not.
        """
        self.model = model
        self.device: torch.device = model.device
        with torch.inference_mode():
            self._prove()

    def forward(self, parts: Pass) -> torch.Tensor:
        """Feed the contexts. Afterwards these tokens count as seen.

        Returns:
            float32[k, vocabulary], the logits after the last token of each context that has now seen all, in order.
        """
        ids = np.concatenate([context.since(context.seen, context.seen + count) for context, count in parts])
        positions = np.concatenate([np.arange(context.seen, context.seen + count) for context, count in parts])
        ends = np.cumsum([count for _, count in parts]) - 1
        done = [context.seen + count == context.size for context, count in parts]
        logits = self.model(
            input_ids=torch.from_numpy(ids).long()[None].to(self.device),
            position_ids=torch.from_numpy(positions)[None].to(self.device),
            logits_to_keep=torch.from_numpy(ends[done]).to(self.device),
            use_cache=False,
            parts=parts,
        ).logits
        for context, count in parts:
            context.seen += count
        return logits[0].float()

    def check_device(self) -> None:
        """Raise the device's error if the device does not work any more, as after some errors of CUDA."""
        torch.zeros(1, device=self.device).add_(1).item()

    def _prove(self) -> None:
        """Compare a packed pass with a plain one, on two sequences, one of them fed in two pieces."""
        vocabulary = self.model.get_input_embeddings().num_embeddings
        tokens = np.random.default_rng(0).integers(vocabulary, size=(2, _PROOF_TOKENS), dtype=np.int32)
        plain = self.model(torch.from_numpy(tokens).long().to(self.device), use_cache=False).logits[:, -1].float()
        first, second = Context(tokens[0], 0), Context(tokens[1], 0)
        try:
            self.model.set_attn_implementation(_ATTENTION)
            self.forward([(second, _PROOF_TOKENS // 2)])
            packed = self.forward([(first, _PROOF_TOKENS), (second, _PROOF_TOKENS - _PROOF_TOKENS // 2)])
            error = (packed.log_softmax(-1) - plain.log_softmax(-1)).abs().max().item()
            if first.layers != self.model.config.get_text_config().num_hidden_layers:
                raise UnsupportedModel("some of its layers have no attention of the usual kind")
            if not error <= 1e-3 + 64 * torch.finfo(self.model.dtype).eps:
                raise UnsupportedModel(f"its log-probs are {error:.2g} off when sequences share a pass")
            self.token_bytes = first.bytes // _room(_PROOF_TOKENS)
            """Bytes of one token's keys and values."""
        except (UnsupportedModel, ValueError, TypeError, KeyError, RuntimeError) as cause:
            raise ConfigError(
                f"policy.engine transformers cannot serve a {type(self.model).__name__}: {cause}.",
                "Serve it with policy.engine sglang.",
            ) from cause


def sample(logits: torch.Tensor, settings: Sequence[Sampling]) -> tuple[list[int], list[float]]:
    """Sample a token from each row.

    Args:
        logits: float32[k, vocabulary].
        settings: of each row.

    Returns:
        k token ids, and their natural log-probs under softmax(logits / temperature), of temperature 1 where that is 0:
        before top-p and top-k, as SGLang has it.
    """
    temperatures = logits.new_tensor([how.temperature for how in settings])
    greedy = temperatures == 0
    logprobs = (logits / temperatures.where(~greedy, 1.0)[:, None]).log_softmax(-1)
    weights = logprobs.exp()
    limited = [row for row, how in enumerate(settings) if how.top_p < 1 or how.top_k > 0]
    if limited:
        weights[limited] = _limited(weights[limited], [settings[row] for row in limited])
    reach = weights.cumsum(-1)
    drawn = torch.searchsorted(reach, (1 - torch.rand_like(reach[:, :1])) * reach[:, -1:])  # never a weight of 0
    tokens = torch.where(greedy, logits.argmax(-1), drawn[:, 0].clamp(max=logits.shape[-1] - 1))
    return tokens.tolist(), logprobs.gather(-1, tokens[:, None])[:, 0].tolist()


def _limited(weights: torch.Tensor, settings: Sequence[Sampling]) -> torch.Tensor:
    """`weights` with entries outside top-p or top-k set to 0."""
    vocabulary = weights.shape[-1]
    top_p = weights.new_tensor([how.top_p for how in settings])[:, None]
    top_k = weights.new_tensor([how.top_k if how.top_k > 0 else vocabulary for how in settings])[:, None]
    ordered, ids = weights.sort(-1, descending=True)
    above = ordered.cumsum(-1) - ordered
    outside = (above >= top_p) | (torch.arange(vocabulary, device=weights.device) >= top_k)
    return torch.zeros_like(weights).scatter(-1, ids, ordered.masked_fill(outside, 0))


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    parts: Pass,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it: query [1, heads, n, width], key and value [1, fewer heads, n, width]; gives
    [1, n, heads, width]."""
    unknown = [name for name in ("softcap", "s_aux", "position_bias") if others.get(name) is not None]
    if unknown or attention_mask is not None:
        raise UnsupportedModel(f"its attention takes {', '.join(unknown) or 'a mask of its own'}")
    outputs = []
    start = 0
    for context, count in parts:
        end = start + count
        keys, values = context.extend(module.layer_idx, (key[0, :, start:end], value[0, :, start:end]))
        outputs.append(_attention(query[0, :, start:end], keys, values, scaling, sliding_window))
        start = end
    return torch.cat(outputs)[None], None


def _attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float | None, window: int | None
) -> torch.Tensor:
    """Query [heads, m, width], of the last m of the n tokens of keys and values [fewer heads, n, width]; gives [m,
    heads, width]."""
    new, total = query.shape[1], keys.shape[1]
    first = max(0, total - window) if window and new == 1 else 0
    query = query.unflatten(0, (len(keys), -1))  # query heads by the key head that they share
    keys, values = keys[:, None, first:], values[:, None, first:]
    if new == 1:  # one product per group of heads reads the keys only once
        output = functional.scaled_dot_product_attention(query.transpose(1, 2), keys, values, scale=scaling)
        return output.flatten(0, 2)[None]
    shared = (-1, query.shape[1], -1, -1)
    mask = _mask(new, total, window, query.device) if window or total > new else None
    output = functional.scaled_dot_product_attention(
        query, keys.expand(shared), values.expand(shared), attn_mask=mask, is_causal=mask is None, scale=scaling
    )
    return output.flatten(0, 1).transpose(0, 1)


def _mask(new: int, total: int, window: int | None, device: torch.device) -> torch.Tensor:
    """bool[new, total]: which tokens each of the last `new` tokens attends to."""
    place = torch.arange(total, device=device)
    behind = place[total - new :, None] - place
    return (behind >= 0) & (behind < (window or total))


def _grown(part: torch.Tensor, room: int) -> torch.Tensor:
    """A copy of [heads, n, width] with room for more: [heads, room, width]."""
    whole = part.new_empty(part.shape[0], room, part.shape[2])
    whole[:, : part.shape[1]] = part
    return whole


def _room(tokens: int) -> int:
    """Capacity to allocate for this many tokens, with spare room so that a growing turn rarely copies its cache."""
    return tokens + tokens // 4 + 64


transformers.AttentionInterface.register(_ATTENTION, _attend)
