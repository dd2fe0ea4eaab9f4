"""What a trainer computes: log-probs of a trajectory's tokens with Hugging Face's model, float32, on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers

from rollout_service.record.trajectory import TokenSegment

torch.set_num_threads(1)  # two threads that share so small a matrix wait for each other, and use the CPU to wait


class Reference:
    """A model's weights of one version."""

    def __init__(self, path: str, tensors: Mapping[str, torch.Tensor] | None = None) -> None:
        """Load the folder's weights, then those of `tensors`, by name."""
        self._model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        if tensors is not None:
            self._model.load_state_dict(dict(tensors), strict=False)

    def state(self) -> dict[str, torch.Tensor]:
        """Its weights, by name."""
        return {name: tensor.clone() for name, tensor in self._model.state_dict().items()}

    def logprobs(self, token_ids: Any, wanted: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.float32]:
        """float32[n]: of each token after those before it; 0 for the first, and for those that are not `wanted`."""
        ids = torch.as_tensor(np.asarray(token_ids, dtype=np.int64))
        shown = torch.ones(len(ids), dtype=torch.bool) if wanted is None else torch.as_tensor(wanted)
        with torch.no_grad():
            hidden = self._model.model(ids[None]).last_hidden_state[0, :-1][shown[1:]]
            scores = torch.log_softmax(self._model.lm_head(hidden).float(), dim=-1)
        found = np.zeros(len(ids), np.float32)
        found[1:][shown[1:].numpy()] = scores.gather(1, ids[1:][shown[1:], None])[:, 0].numpy()
        return found


def pure_error(segment: TokenSegment, versions: Mapping[int, Reference]) -> float:
    """`error` over the turns that say that nothing but weights of one version was in them, not even in what they were
    computed over."""
    pure = np.full(len(segment.token_ids), -1, dtype=np.int32)
    for turn in segment.turns:
        sampled = segment.weight_versions[turn.start : turn.end]
        if set(sampled.tolist()) == {turn.prefix_version}:
            pure[turn.start : turn.end] = sampled
    return error(replace(segment, weight_versions=pure), versions)


def error(segment: TokenSegment, versions: Mapping[int, Reference]) -> float:
    """The largest difference between the segment's log-probs and the references', each token under the weights of its
    own version. A version that is not given is not looked at."""
    worst = 0.0
    for version, reference in versions.items():
        sampled = segment.weight_versions == version
        if sampled.any():
            difference = np.abs(reference.logprobs(segment.token_ids, sampled) - segment.logprobs)[sampled]
            worst = max(worst, float(difference.max()))
    return worst
