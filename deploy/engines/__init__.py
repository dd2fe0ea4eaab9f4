"""Engines: what samples tokens inside a policy replica.

`base` has the protocol, `factory` makes the engine that the settings name, and `sglang`, `transformers` and `scripted`
are one engine each. What only one engine needs lies beside it: `launch` (SGLang), `batch` and `packed` (transformers).
"""
