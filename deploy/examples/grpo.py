"""Trainer: supervised imitation and GRPO in plain torch.

Invariant: a probability ratio is relative to the policy that sampled the token. The batch's padding and the number of
tokens that go through the model at a time change how long a step takes and how much memory it needs, and nothing else.
On a GPU the weights and the log-softmax are in float32, and what is between them in bfloat16.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import transformers
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers.trainer_pt_utils import get_length_grouped_indices

from deploy.examples.copies import Copies
from deploy.examples.renaming import Digits, renamed
from rollout_service.adapters.torch import collate_padded
from rollout_service.collecting.judging import informative
from rollout_service.record.trajectory import Trajectory

Tensors = dict[str, torch.Tensor]
Groups = Sequence[list[Trajectory]]

CLIP = 0.2
"""Largest distance from 1 of the ratio up to which a token is still pushed in the direction of its advantage."""

TOLD_EVERY = 10
"""Steps of the imitation."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Learning rates of Adam. That of the imitation falls linearly to a twentieth, by its steps or by its time."""

    imitation: float
    grpo: float


def causal_attention(
    _: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, __: None, scaling: float, **___: Any
) -> tuple[torch.Tensor, None]:
    """Attention for transformers, of the last tokens to all of them. With fewer queries than keys, its own would make a
    mask of both lengths for each row and layer; this one needs none where FlashAttention can run.

    Args:
        query: [rows, heads, queries, size].
        key, value: [rows, key heads, keys, size]. Query i attends to the first keys - queries + i + 1 keys.
    """
    from torch.nn.attention.bias import causal_lower_right  # brings torch's compiler, which takes seconds to import

    mask = causal_lower_right(query.shape[2], key.shape[2])
    query = query.to(value.dtype)  # under autocast, rotary embeddings leave float32
    mixed = functional.scaled_dot_product_attention(query, key, value, mask, scale=scaling, enable_gqa=True)
    return mixed.transpose(1, 2).contiguous(), None


transformers.AttentionInterface.register(causal_attention.__name__, causal_attention)


class OneTypeCache(transformers.DynamicCache):  # type: ignore[misc]  # mypy does not read transformers
    """Keeps the keys in the type of the values. Under autocast the keys are float32, and the values would become it:
    FlashAttention takes no float32, and what is taken instead makes the mask."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *others: Any, **more: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `transformers.Cache`."""
        return super().update(key_states.to(value_states.dtype), value_states, *others, **more)


def shared_tokens(tensors: Tensors) -> int:
    """How many tokens all rows begin with, none of which was sampled."""
    ids = tensors["input_ids"]
    return int(((ids != ids[0]) | tensors["loss_mask"]).any(0).int().argmax())


def token_logprobs(model: Any, tensors: Tensors) -> torch.Tensor:
    """float32[sampled tokens]: the model's log-prob of each sampled token.

    What all rows begin with (the domain's policy, its tools) goes through the model once; the rest of each row reads
    its keys and values, and gradients flow back through them. Rows are padded on the right and the model is causal, so
    there is no attention mask to make. The vocabulary is looked at only where a token was sampled.
    """
    ids, mask = tensors["input_ids"], tensors["loss_mask"]
    shared = shared_tokens(tensors)
    cache = OneTypeCache(config=model.config)
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=ids.is_cuda):
        model.model(input_ids=ids[:1, :shared], past_key_values=cache)
        cache.batch_repeat_interleave(len(ids))
        hidden = model.model(input_ids=ids[:, shared:], past_key_values=cache).last_hidden_state
    logits = model.lm_head(hidden[mask[:, shared:]].float())
    return -functional.cross_entropy(logits, tensors["target_ids"][mask], reduction="none")


class Trainer:
    """The model and its optimizer."""

    def __init__(self, model: Any, device: str, rates: Rates, tokens: int = 16_384, beside: Sequence[str] = ()) -> None:
        """
        Args:
            model: gets the attention of this module.
            tokens: most that go through the model at a time, padding included, beside those that all rows begin with
                (see `token_logprobs`). A longer row goes alone.
            beside: other devices, which share the imitation with `device`.

        Raises:
            RuntimeError, AssertionError: torch's, for a device that is not there.
        """
        self.model = model.to(device)
        self.model.set_attn_implementation(causal_attention.__name__)
        # This fails now if a device is not there, and not after the demonstrations have been played.
        self._beside = [str(torch.empty(0, device=each).device) for each in beside]
        self._rates = rates
        self._tokens = tokens
        self._optimizer = torch.optim.Adam(model.parameters(), lr=rates.grpo)
        self._random = np.random.default_rng(torch.initial_seed())
        if device.startswith("cuda"):
            torch.cuda.set_device(device)
            # cuDNN makes a plan for each new shape, on the CPU, and nearly every part has a shape of its own.
            torch.backends.cuda.enable_cudnn_sdp(False)

    def imitate(
        self,
        demonstrations: Iterable[Trajectory],
        epochs: int,
        per_step: int,
        tell: Callable[[dict[str, Any]], None],
        digits: Digits | None = None,
        seconds: float = math.inf,
        steps_sorted: int = 1,
    ) -> None:
        """Imitate the demonstrations, good and bad ones alike. A turn with a call that nobody could read is not
        imitated; what came after it is.

        Args:
            per_step: demonstrations in a step of the optimizer.
            tell: told the mean loss of each epoch, and now and then that of a step.
            digits: with them, a demonstration has other numbers each time, see `renaming`.
            seconds: no step begins after so many.
            steps_sorted: the demonstrations of so many consecutive steps are sorted by length, which saves padding.
        """
        collate = functools.partial(self._to_imitate, digits=digits)
        given = list(demonstrations)
        lengths = [sum(len(segment.token_ids) for segment in each.segments) for each in given]
        self._optimizer = torch.optim.Adam(self.model.parameters(), lr=self._rates.imitation)
        copies = Copies(self.model, self._beside)
        began, step, steps = time.monotonic(), 0, epochs * math.ceil(len(given) / per_step)
        for epoch in range(1, epochs + 1):
            losses: list[float] = []
            order = get_length_grouped_indices(lengths, per_step, mega_batch_mult=steps_sorted)
            batches: Any = DataLoader(given, per_step, sampler=order, collate_fn=collate)
            for tensors in batches:
                passed = time.monotonic() - began
                if passed >= seconds:
                    break
                for group in self._optimizer.param_groups:
                    group["lr"] = self._rates.imitation * (1.0 - 0.95 * max(step / steps, passed / seconds))
                losses.append(self._imitation_step(tensors, copies))
                step += 1
                if step % TOLD_EVERY == 0:
                    tell({"imitation step": step, "of": steps, "loss": losses[-1], "seconds": time.monotonic() - began})
            if losses:
                tell({"imitation": epoch, "loss": float(np.mean(losses)), "seconds": time.monotonic() - began})
        self._optimizer = torch.optim.Adam(self.model.parameters(), lr=self._rates.grpo)
        del copies
        torch.cuda.empty_cache()  # whoever else uses the other GPUs may need their memory

    def improve(self, groups: Groups) -> dict[str, float]:
        """GRPO: one optimizer step for each half of the groups. Returns mean loss and share of clipped tokens."""
        losses, clipped = [], []
        for half in groups[::2], groups[1::2]:
            # A group with equal rewards has no advantages, so it would cost time and teach nothing.
            tensors = collated([group for group in half if informative(group)])
            total = int(tensors["loss_mask"].sum())
            if not total:
                continue
            loss, cut = 0.0, 0
            for part in self._parts(tensors, self.model.device):
                mask = part["loss_mask"]
                advantages = part["advantages"][:, None].expand(mask.shape)[mask]
                ratio = (token_logprobs(self.model, part) - part["old_logprobs"][mask]).exp()
                gain = torch.minimum(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages)
                cut += int((gain < ratio * advantages).sum())
                loss += self._backward(-gain.sum() / total)
            self._descend()
            losses.append(loss)
            clipped.append(cut / total)
        return {"loss": float(np.mean(losses or 0.0)), "clipped": float(np.mean(clipped or 0.0))}

    def logprob_error(self, trajectories: Iterable[Trajectory], version: int) -> float | None:
        """The largest difference between this model's log-probs and the trajectories', over tokens that were sampled
        with this model's weights, `version`. None: there is no such token."""
        worst: list[float] = []
        for part in self._parts(collated(trajectories), self.model.device):
            mask = part["loss_mask"]
            newest = part["weight_versions"][mask] == version
            if newest.any():
                with torch.no_grad():
                    error = (token_logprobs(self.model, part) - part["old_logprobs"][mask]).abs()
                worst.append(float(error[newest].max()))
        return max(worst, default=None)

    def _imitation_step(self, tensors: Tensors, copies: Copies) -> float:
        total = int(tensors["loss_mask"].sum())

        def backward(model: Any, rows: torch.Tensor) -> float:
            share = {name: tensor[rows] for name, tensor in tensors.items()}
            parts = self._parts(share, model.device)
            return sum(self._backward(-token_logprobs(model, part).sum() / total) for part in parts)

        longest_first = tensors["lengths"].argsort(descending=True)
        loss = copies.gradients(backward, [longest_first[place :: len(copies)] for place in range(len(copies))])
        self._descend()
        copies.follow()
        return loss

    def _to_imitate(self, demonstrations: Sequence[Trajectory], digits: Digits | None) -> Tensors:
        # Each is a group of its own, as a batch holds some of a group only.
        tensors = collated([replace(each, group_id=each.trajectory_id, sample_index=0) for each in demonstrations])
        segments = [segment for trajectory in demonstrations for segment in trajectory.segments]
        for row, segment in zip(tensors["loss_mask"], segments, strict=True):
            for turn in segment.turns:
                if any(status != "ok" for status in turn.tool_calls):
                    row[turn.start - 1 : turn.end - 1] = False  # the mask stands where the logits predict the token
        if digits is not None:
            self._rename(tensors, digits)
        return tensors

    def _rename(self, tensors: Tensors, digits: Digits) -> None:
        shared = shared_tokens(tensors)
        for ids, targets, length in zip(tensors["input_ids"], tensors["target_ids"], tensors["lengths"], strict=True):
            row = torch.from_numpy(renamed(ids[:length].numpy(), shared, digits, self._random))
            ids[:length] = row
            targets[: length - 1] = row[1:]

    def _parts(self, tensors: Tensors, device: torch.device) -> Iterator[Tensors]:
        """The rows that go through the model at a time, on this device: rows of similar lengths, the longest first,
        without padding that none of them needs."""
        lengths, order = tensors["lengths"].sort(descending=True)
        start, shared = 0, shared_tokens(tensors) if len(order) else 0
        while start < len(order):
            longest = int(lengths[start])
            count = max(1, self._tokens // max(1, longest - shared))
            rows = order[start : start + count]
            start += count
            part = {name: tensor[rows] for name, tensor in tensors.items()}
            if part["loss_mask"].any():
                cut = {name: tensor[:, :longest] if tensor.dim() == 2 else tensor for name, tensor in part.items()}
                yield {name: tensor.to(device) for name, tensor in cut.items()}

    def _backward(self, loss: torch.Tensor) -> float:
        loss.backward()
        return loss.item()

    def _descend(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()


def own_weights(model: Any) -> dict[str, torch.Tensor]:
    """The model's weights by name, without those that are another's under a second name."""
    tied = set(getattr(model, "_tied_weights_keys", None) or ()) if model.config.tie_word_embeddings else set()
    return {name: weight for name, weight in model.state_dict().items() if name not in tied}


def collated(items: Any) -> Tensors:
    """Trajectories or groups as padded tensors on the CPU, see `collate_padded`. An episode without a reward is masked,
    and teaches nothing."""
    return collate_padded(items, pad_token_id=0, unscored="mask")
