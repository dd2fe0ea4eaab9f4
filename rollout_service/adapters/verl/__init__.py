"""verl: trajectories in its own types (`batch`), and episodes that its own agent loop plays (`loop`)."""

from rollout_service.adapters.verl.batch import agent_loop_output, data_proto

__all__ = ["agent_loop_output", "data_proto"]
