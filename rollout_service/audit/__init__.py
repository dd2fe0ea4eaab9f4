"""Audits: of stored trajectories (`rollout-service verify`, `rescore`), and of tasks (`rollout-service tasks --audit`).

It may use every other room that explains a record (`record`, `chat`, `tau2`, `config`), and none of them uses it. That
is why it is not a part of `record`, which the chat codec builds on.
"""
