"""The service's Ray actors: `coordinator` runs collections, `fleet` the policy's replicas, `environment` the episodes.

`pool` and `running` are parts of the coordinator. What others need to call an actor, its handle and its messages, lies
in the library; decisions that need no Ray lie in `rollout_service.collecting`.
"""
