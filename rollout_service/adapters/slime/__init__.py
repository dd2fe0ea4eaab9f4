"""slime's hooks, by the paths that slime's flags name. `hooks` says which flag takes which of them."""

from rollout_service.adapters.slime.hooks import generate, generate_rollout
from rollout_service.adapters.slime.rewards import keep_informative, report, reward_post_process

__all__ = ["generate", "generate_rollout", "keep_informative", "report", "reward_post_process"]
