"""A model small enough for any test: Qwen3 with random weights and the embedded tokenizer, or another one.

Invariant: the same arguments give the same weights, bit for bit. A model with its own output embeddings samples text
only, never a token that the tokenizer added or lacks: no end of turn, no tool call, no thought. So each turn has
`max_new_tokens` tokens unless the test gives a stop token, and an episode has as many turns as the user asks for,
whatever the random numbers are.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from rollout_service.chat.codec import EMBEDDED_TOKENIZER


def make(path: Path, seed: int = 0, tokenizer: Any = None, *, max_shard_size: str = "50GB", **config: Any) -> Path:
    """Write the model and its tokenizer into the folder `path`; gives the folder.

    Args:
        seed: of the weights.
        tokenizer: whose vocabulary the model has; None: the embedded one.
        max_shard_size: of a file of weights, as `save_pretrained` takes it.
        config: fields of `Qwen3Config` that shall differ: `tie_word_embeddings=True`. `dtype` is float32 by default.
    """
    if tokenizer is None:
        tokenizer = transformers.AutoTokenizer.from_pretrained(EMBEDDED_TOKENIZER)
    return _written(path, _random(seed, tokenizer, config), tokenizer, max_shard_size)


def _random(seed: int, tokenizer: Any, config: Mapping[str, Any]) -> transformers.Qwen3ForCausalLM:
    fields: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 65536,
        "initializer_range": 0.3,  # of a real model it is 0.02; the outputs of so small a one would be flat
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": None,
        "dtype": "float32",
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**fields | config))
    with torch.no_grad():
        added = [*tokenizer.added_tokens_decoder, *range(len(tokenizer), model.config.vocab_size)]
        model.lm_head.weight[added] = 0.0
        if not model.config.tie_word_embeddings:
            _forbid(model, added)
    return model


def _written(path: Path, model: transformers.Qwen3ForCausalLM, tokenizer: Any, max_shard_size: str = "50GB") -> Path:
    model.to(model.config.dtype).save_pretrained(path, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(path)
    return path


def _forbid(model: transformers.Qwen3ForCausalLM, tokens: list[int]) -> None:
    """Make the probability of these tokens 0 in every context: the first hidden dimension is 1 at every position, and
    only their rows of the output embeddings read it."""
    model.model.embed_tokens.weight[:, 0] = 1.0
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[0] = 0.0
        layer.mlp.down_proj.weight[0] = 0.0
    model.lm_head.weight[:, 0] = 0.0
    model.lm_head.weight[tokens, 0] = -1000.0


def make_speaker(path: Path, tokenizer: Any, says: Mapping[str, str], **config: Any) -> Path:
    """Write a model that says the same every time: each token is followed by the one that follows it in the texts, and
    the end of the text by the end of the turn; gives the folder.

    Args:
        says: texts by the prompt's last token. No token may have two successors.
        config: fields of `Qwen3Config` that shall differ. It must not be narrower than the texts have tokens.
    """
    end = tokenizer.eos_token_id
    follows: dict[int, int] = {}
    for opening, text in says.items():
        tokens = [tokenizer.convert_tokens_to_ids(opening), *tokenizer.encode(text, add_special_tokens=False), end]
        for token, successor in itertools.pairwise(tokens):
            assert follows.setdefault(token, successor) == successor, f"two tokens follow {tokenizer.decode([token])!r}"
    shape = {"hidden_size": len(follows) + 1, "num_hidden_layers": 1, "eos_token_id": end}
    model = _random(0, tokenizer, shape | config)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.lm_head.weight.zero_()
        model.model.embed_tokens.weight.zero_()
        model.model.embed_tokens.weight[:, 0] = 1.0  # of all other tokens
        model.lm_head.weight[end, 0] = 10.0
        for place, (token, successor) in enumerate(follows.items(), 1):
            model.model.embed_tokens.weight[token, 0] = 0.0
            model.model.embed_tokens.weight[token, place] = 1.0
            model.lm_head.weight[successor, place] = 10.0
    return _written(path, model, tokenizer)
