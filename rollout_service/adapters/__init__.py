"""Adapters: the service's trajectories in each trainer's own types. One schema, thin adapters; none imports its trainer
before it is called by it."""
