"""Policies: tokens in, tokens out. `base` is the contract; each other module is one way to reach an engine."""
