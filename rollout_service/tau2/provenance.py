"""Where a trajectory comes from: all that made it, as it is recorded.

Invariant: nothing secret is in it, and what a later reader needs to make τ²'s own results file of the trajectory is in
it or can be read from the τ²-bench that it names. `task_hash` and `domain_hash` tell whether the one that is installed
there has the same task, policy and tools.
"""

from __future__ import annotations

from rollout_service.chat.codec import ChatCodec
from rollout_service.config import RolloutConfig
from rollout_service.config.sampling import Sampling
from rollout_service.record.trajectory import Provenance, TaskRef
from rollout_service.redaction import redact
from rollout_service.tau2 import compat, domain, tasks
from rollout_service.version import __version__


class ProvenanceSource:
    """Gives the trajectories of one configuration their provenance."""

    def __init__(self, config: RolloutConfig, codec: ChatCodec, vocabulary: int | None) -> None:
        """
        Args:
            vocabulary: rows of the model's embedding; None: not known.
        """
        self._config = config
        self._codec = codec
        self._vocabulary = vocabulary
        self._model = redact(config.policy.model or config.policy.url or config.policy.engine)

    def of(self, task: TaskRef, sampling: Sampling, evaluator: str, max_turns: int | None) -> Provenance:
        """The provenance of a trajectory of the task with this sampling, scored by `evaluator`.

        Args:
            max_turns: of its request; None: as configured.
        """
        codec, config, kind = self._codec, self._config, self._config.user_kind
        played = domain.get(task.domain, config.tasks.searched)
        return Provenance(
            model=self._model,
            tokenizer=codec.name,
            tokenizer_fingerprint=codec.tokenizer_fingerprint,
            tokenizer_size=codec.tokenizer_size,
            model_vocabulary_size=self._vocabulary,
            template_fingerprint=codec.template_fingerprint,
            history=config.policy.history,
            tool_parser=codec.tool_parser,
            template_arguments=dict(codec.template_arguments),
            template_date=codec.date,
            greeting=codec.greeting,
            sampling=sampling.model_dump(),
            agent=config.agent,
            user=str(config.user.model) if kind == "llm" else kind,
            user_arguments=dict(config.user.sent) if kind == "llm" else {},
            evaluation=config.evaluation.type,
            evaluator=evaluator,
            limits=config.limits.model_dump(include={"max_steps", "max_errors"})
            | {"max_turns": max_turns or config.limits.max_turns},
            task_hash=tasks.hash_of(task),
            domain_hash=played.content_hash(config.agent == "solo"),
            retrieval={} if played.retrieval is None else played.retrieval._asdict(),
            tau2_distribution=compat.DISTRIBUTION,
            tau2_version=compat.VERSION,
            service_version=__version__,
        )
