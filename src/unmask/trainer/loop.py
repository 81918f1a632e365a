"""The trainer, which sets up a training run and, before the first step, checks everything that a
user may get wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.core.errors import ConfigError, DataError
from unmask.evaluation.model_card import training_card
from unmask.evaluation.usable import faults_for, usable_rows
from unmask.models import Denoiser
from unmask.recipes.schema import TrainRecipe
from unmask.recipes.scorer import scorer_of
from unmask.rewards.protocol import RewardFunc
from unmask.rewards.scorer import Scorer
from unmask.sampling.engine import RolloutEngine
from unmask.tasks.candidates import Candidates
from unmask.trainer.collect import check_rewards, check_sharing
from unmask.trainer.distributed.backend import is_sharded
from unmask.trainer.metrics import TokenPasses
from unmask.trainer.policy import make_policy, trained_parts
from unmask.trainer.rollout_weights import RolloutWeights
from unmask.trainer.session import Member, Observer, Session
from unmask.trainer.steps import TrainingSteps

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Trainer:
    """Trains a denoiser as a recipe describes.

    Args:
        recipe: settings of the run.
        reward_funcs: reward functions or their paths, instead of those of the recipe or the task.
        resume: True to continue from the newest checkpoint of the run folder.
        observe: function that is called for each line of metrics.
        example: function that is called on the main rank in every step, with a completion and its
            reward.
        engine: samples the rollouts and evaluations; default a `LocalEngine`.

    Raises:
        UnmaskError: the recipe, the model, the examples or the run folder cannot be used.
    """

    def __init__(
        self,
        recipe: TrainRecipe,
        reward_funcs: Sequence[str | RewardFunc] = (),
        *,
        resume: bool = False,
        observe: Observer | None = None,
        example: Callable[[str, float], None] | None = None,
        engine: RolloutEngine | None = None,
    ) -> None:
        member = Member(recipe, "runs/train")
        self.accelerator = member.accelerator
        self.example, self.engine = example, engine
        self._training: TrainingSteps | None = None
        with member.set_up():
            self._set_up(member, recipe, reward_funcs, resume=resume, observe=observe)

    def _set_up(
        self,
        member: Member,
        recipe: TrainRecipe,
        reward_funcs: Sequence[str | RewardFunc],
        *,
        resume: bool,
        observe: Observer | None,
    ) -> None:
        """Load the policy, the examples and the run folder, and prepare the policy for training."""
        with member.ranks.agreed():
            self.recipe = recipe = member.fixed(recipe)
            _check_ranks(recipe, member)
            self.scorer = scorer_of(recipe, reward_funcs, member.progress.alive)
            check_rewards(self.scorer, recipe.method)
            check_sharing(recipe, self.scorer, member.ranks.count)
            candidates = _candidates(recipe, self.scorer)
            self.policy = make_policy(recipe, member.accelerator.device, is_sharded=is_sharded(member.accelerator))
            length, needs_answer = recipe.sampler.max_completion_length, not (reward_funcs or recipe.reward_funcs)
            faults_of = faults_for(
                recipe.task, self.policy.denoiser, self.policy.tokenizer, length, needs_answer=needs_answer
            )
            usable = usable_rows(candidates, faults_of)
            self.folder = member.open_folder(recipe, usable, resume=resume)
            member.tell(trained_parts(recipe, self.policy))
        # Before the session, whose wrapper changes the model in place.
        self.rollout_weights = RolloutWeights(self.policy, recipe, self.accelerator)
        # From here on all ranks do the same, collectives included.
        self.rows, self.eval_rows = usable.rows["train"], usable.rows["evaluation"]
        self.session = Session(
            member,
            recipe,
            self.folder,
            self.policy,
            self._card,
            "a smaller optim.learning_rate or a larger method.beta",
            saves_last=True,
            observe=observe,
        )
        # A reference policy in a module of its own adds to the compute of the method.
        reference = self.policy.reference
        copies = self.rollout_weights.modules()
        self.meter = TokenPasses(self.policy.denoiser, *copies, *(reference.modules() if reference else []))
        for copy in copies:
            member.progress.count_forwards(copy)

    @property
    def denoiser(self) -> Denoiser:
        """The model that is trained, not wrapped for distributed training."""
        return self.policy.denoiser

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Tokenizer of the model."""
        return self.policy.tokenizer

    def train(self) -> Path:
        """Run to the end and return the run folder.

        Raises:
            RunStoppedError: SIGINT, SIGTERM, SIGHUP or SIGUSR1 stopped the run after a saved step.
            UnmaskError: an error for the user; the state before the step that failed is saved.
        """
        try:
            return self.session.run(self._steps)
        finally:
            self.scorer.close()
            if self._training is not None:
                self._training.close()

    def _steps(self) -> TrainingSteps:
        self._training = TrainingSteps(
            self.session,
            self.recipe,
            self.scorer,
            self.rows,
            self.eval_rows,
            self.meter,
            self.rollout_weights,
            self.engine,
            self.example,
        )
        return self._training

    def _card(self, lines: list[dict[str, Any]], notes: list[str]) -> str:
        return training_card(self.recipe, lines, self.folder.data, self.eval_rows, self.denoiser, notes)


def _check_ranks(recipe: TrainRecipe, member: Member) -> None:
    """Refuse settings that do not fit the number of ranks or the way in which the ranks share the
    model. Every rank raises the same error, because all ranks have the same settings."""
    count = member.ranks.count
    if count > 1 and recipe.stuck_timeout <= recipe.reward_timeout:
        raise ConfigError(
            f"stuck_timeout = {recipe.stuck_timeout:g} s would end the run while a reward function may still take "
            f"reward_timeout = {recipe.reward_timeout:g} s. Set stuck_timeout higher.",
            agreed=True,
        )
    if recipe.sync_ref_model and is_sharded(member.accelerator):
        raise ConfigError(
            "sync_ref_model = true needs whole weights, and this preset shards them. Use ddp or zero2, or set it to false.",
            agreed=True,
        )


def _candidates(recipe: TrainRecipe, scorer: Scorer) -> dict[str, Candidates]:
    """Return the examples of the task for training and evaluation, with the columns that the reward
    functions read."""
    setting = recipe.evaluation
    candidates = {
        "train": recipe.task.candidates("train", recipe.num_rows, recipe.seed),
        "evaluation": recipe.task.candidates(setting.split, setting.num_rows, recipe.seed),
    }
    for name, pool in candidates.items():
        if not pool.rows:
            raise DataError(f"the task has no examples for {'training' if name == 'train' else name}.")
        scorer.check_columns(pool.rows[0])
    return candidates
