"""Computes the size of a cluster from a model's shape, a GPU's memory and the number of episodes in flight.

Invariant: this is arithmetic only. Nothing is started or measured, and only the model's `config.json` is read. More
memory never holds fewer episodes, and more episodes never need fewer replicas. The result is a bound, not a forecast:
it counts the whole context of every episode, although the episodes of a domain share its policy and tools in the cache.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rollout_service.errors import ConfigError

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe")
"""Model types whose parameters and cache can be counted exactly. Others may differ in ways that no field shows: sliding
windows, compressed keys, layers without attention."""

SLOTS_PER_ACTOR = 64
"""Episodes that one actor plays with as little delay as several actors would; see docs/performance.md."""

ACTOR_BYTES = 300_000_000
"""CPU memory of an actor without episodes: τ² and the domain's data."""

EPISODE_BYTES = (int(0.90 * 2**20), int(1.84 * 2**20))
"""Measured CPU memory of one more episode in an actor: the least (telecom) and the most (airline)."""

_GIB = 2**30


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The numbers that determine a decoder's memory."""

    parameters: int
    """Number of parameters of the whole model. Tied embeddings count once."""
    layers: int
    heads: int
    """Query heads per layer."""
    kv_heads: int
    """Key and value heads per layer."""
    head_dim: int
    """Numbers per head."""

    @classmethod
    def read(cls, model: str | Path | Mapping[str, Any]) -> ModelShape:
        """The shape in a Hugging Face configuration: its fields, its file, or the folder that holds `config.json`.

        Raises:
            ConfigError: it cannot be read, its type is not in `MODEL_TYPES`, or a field is missing; names the field.
        """
        config = model if isinstance(model, Mapping) else _read(Path(model))
        kind = config.get("model_type")
        if kind not in MODEL_TYPES:
            raise ConfigError(
                f"The model's configuration has model_type {kind!r}, whose memory is not known here.",
                f"Known are {', '.join(MODEL_TYPES)}. For others see what the engine logs when it starts.",
            )
        hidden, layers = _whole(config, "hidden_size"), _whole(config, "num_hidden_layers")
        heads, kv_heads = _whole(config, "num_attention_heads"), _whole(config, "num_key_value_heads")
        normed = kind in ("qwen3", "qwen3_moe")  # their heads have norms, and a width of their own
        head_dim = _whole(config, "head_dim", default=None if normed else hidden // heads)
        queries, keys = heads * head_dim, kv_heads * head_dim
        attention = 2 * hidden * (queries + keys)
        if kind == "qwen2":
            attention += queries + 2 * keys
        elif kind != "mistral" and config.get("attention_bias"):
            attention += queries + 2 * keys + hidden
        if normed:
            attention += 2 * head_dim
        norms = 2 * hidden
        embeddings = _whole(config, "vocab_size") * hidden * (1 if config.get("tie_word_embeddings") else 2)
        parameters = embeddings + layers * (attention + norms) + _feed_forward(config, hidden, layers) + hidden
        return cls(parameters, layers, heads, kv_heads, head_dim)


@dataclass(frozen=True, slots=True)
class ClusterSize:
    """A cluster that keeps `episodes` in flight and never evicts one from the cache.

    Raises:
        ConfigError: a value is out of its range, the heads cannot be split over the GPUs, or the weights or an
            episode's context do not fit.
    """

    model: ModelShape
    gpu_memory: float
    """Memory of one GPU in GiB. A card sold as 80 GB has about 80."""
    episodes: int
    """Number of episodes in flight."""
    context: int
    """Tokens of one episode at its end."""
    tensor_parallel: int = 1
    """GPUs that share one replica."""
    memory_fraction: float = 0.85
    """Fraction of a GPU's memory for weights and cache: SGLang's `mem_fraction_static`. The rest is for activations and
    CUDA graphs."""
    value_bytes: float = 2.0
    """Bytes of one weight and of one cached value: 2 in bfloat16."""

    def __post_init__(self) -> None:
        """Check the values and that everything fits."""
        for name in ("gpu_memory", "episodes", "context", "tensor_parallel", "value_bytes"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}.", "It must be above 0.")
        if not 0 < self.memory_fraction < 1:
            raise ConfigError(f"memory_fraction is {self.memory_fraction}.", "It must lie between 0 and 1.")
        self._check_split()
        weights, budget = self.weight_bytes / self.tensor_parallel / _GIB, self._budget / _GIB
        if weights >= budget:
            raise ConfigError(
                f"The weights take {weights:.1f} GiB of each GPU, but they and the cache may have only {budget:.1f}.",
                "Use larger GPUs, or raise the tensor parallel size.",
            )
        if not self.episodes_per_replica:
            raise ConfigError(
                f"An episode of {self.context:,} tokens does not fit: a replica's cache has {self.cache_tokens:,}.",
                "Use larger GPUs, raise the tensor parallel size, or shorten the context.",
            )

    def _check_split(self) -> None:
        heads, kv_heads, gpus = self.model.heads, self.model.kv_heads, self.tensor_parallel
        if heads % gpus or (kv_heads % gpus and gpus % kv_heads):
            raise ConfigError(
                f"{heads} query heads and {kv_heads} key and value heads cannot be split evenly over {gpus} GPUs.",
                "Choose a tensor parallel size that divides both, or the first and is a multiple of the second.",
            )

    @property
    def weight_bytes(self) -> int:
        """Bytes of the whole model, on all GPUs of a replica together."""
        return math.ceil(self.model.parameters * self.value_bytes)

    @property
    def cache_bytes_per_token(self) -> int:
        """Bytes of one token's keys and values, on all GPUs of a replica together. If a replica has more GPUs than the
        model has key and value heads, each GPU holds a copy of one head."""
        kept = max(self.model.kv_heads, self.tensor_parallel)
        return math.ceil(2 * self.model.layers * kept * self.model.head_dim * self.value_bytes)

    @property
    def cache_tokens(self) -> int:
        """Tokens whose keys and values one replica can hold."""
        return int((self._budget * self.tensor_parallel - self.weight_bytes) // self.cache_bytes_per_token)

    @property
    def episodes_per_replica(self) -> int:
        """Episodes of `context` tokens that one replica holds at a time."""
        return self.cache_tokens // self.context

    @property
    def replicas(self) -> int:
        """Number of policy replicas."""
        return math.ceil(self.episodes / self.episodes_per_replica)

    @property
    def gpus(self) -> int:
        """Number of GPUs of all replicas."""
        return self.replicas * self.tensor_parallel

    @property
    def actors(self) -> int:
        """Number of environment actors. Each takes a CPU."""
        return math.ceil(self.episodes / SLOTS_PER_ACTOR)

    @property
    def slots(self) -> int:
        """Episodes per actor."""
        return math.ceil(self.episodes / self.actors)

    @property
    def environment_bytes(self) -> tuple[int, int]:
        """Bytes of CPU memory of the actors and their episodes, for the smallest and the largest domain, without Ray's
        own."""
        least, most = (self.actors * ACTOR_BYTES + self.episodes * each for each in EPISODE_BYTES)
        return least, most

    @property
    def _budget(self) -> float:
        """Bytes of one GPU that weights and cache may take."""
        return self.gpu_memory * _GIB * self.memory_fraction


def _read(path: Path) -> Mapping[str, Any]:
    path = path / "config.json" if path.is_dir() else path
    remedy = "Give the folder of a model in Hugging Face format, or its config.json."
    try:
        config = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"The model's configuration {path} cannot be read: {error.strerror}.", remedy) from error
    except ValueError as error:
        raise ConfigError(f"The model's configuration {path} is not JSON: {error}.", remedy) from error
    if not isinstance(config, dict):
        raise ConfigError(f"The model's configuration {path} holds a {type(config).__name__}.", remedy)
    return config


def _whole(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = default if config.get(name) is None else config[name]
    if value is None:
        raise ConfigError(f"The model's configuration has no {name}.", "Its memory does not follow from the rest.")
    if type(value) is not int or value < 1:
        raise ConfigError(f"The model's configuration has {name} {value!r}.", "It must be a whole number above 0.")
    return value


def _feed_forward(config: Mapping[str, Any], hidden: int, layers: int) -> int:
    """Parameters of all layers' feed-forward parts: dense, or experts behind a router."""
    sparse = 0
    if config["model_type"] == "qwen3_moe":
        step, dense_ones = _whole(config, "decoder_sparse_step", default=1), set(config.get("mlp_only_layers") or ())
        sparse = sum((layer + 1) % step == 0 and layer not in dense_ones for layer in range(layers))
    experts = expert = dense = 0
    if sparse:
        # transformers 5 saves it under the second name
        experts = _whole(config, "num_local_experts" if "num_local_experts" in config else "num_experts")
        expert = 3 * hidden * _whole(config, "moe_intermediate_size") + hidden  # including its row of the router
    if sparse < layers:
        width = _whole(config, "intermediate_size")
        dense = 3 * hidden * width + (2 * width + hidden if config.get("mlp_bias") else 0)
    return sparse * experts * expert + (layers - sparse) * dense
