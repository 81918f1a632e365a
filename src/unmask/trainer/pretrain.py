"""Masked-diffusion pretraining, which maximizes the ELBO of MDLM and LLaDA on a task's
demonstrations, from scratch or from a checkpoint.

-ELBO = E_t [ (1/t) Σ_{i masked} -log p_θ(x_i | x_t) ], where each completion position is masked
with probability t (arXiv:2406.07524, arXiv:2502.09992). The values of t are stratified over the
batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from unmask.core.errors import ConfigError
from unmask.evaluation.model_card import pretraining_card
from unmask.evaluation.usable import Usable, faults_for, usable_rows
from unmask.functional.noise import named_generator
from unmask.models import Denoiser, Policy, tiny_denoiser, word_tokenizer
from unmask.models.device import weights_dtype
from unmask.recipes.schema import PretrainRecipe
from unmask.trainer.corpus import Corpus, PretrainBatch, completion_length
from unmask.trainer.distributed import backend
from unmask.trainer.expert_use import ExpertUse
from unmask.trainer.metrics import Tally
from unmask.trainer.optimizer import make_optimizers, set_learning_rate
from unmask.trainer.policy import TrainedPolicy, base_mark, equip, load_policy, trained_parts
from unmask.trainer.session import Member, Observer, Session

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase


def pretrain(recipe: PretrainRecipe, *, resume: bool = False, observe: Observer | None = None) -> Path:
    """Train as the recipe describes and return the run folder, with the model in `final/`.

    A finished run stays as it is, unless the recipe has a larger max_steps than before.

    Args:
        recipe: settings of the run.
        resume: True to continue from the newest checkpoint of the run folder.
        observe: function that is called for each line of metrics.

    Raises:
        RunStoppedError: SIGINT, SIGTERM, SIGHUP or SIGUSR1 stopped the run after a saved step.
        UnmaskError: the recipe, the model, the examples or the run folder cannot be used.
    """
    member = Member(recipe, "runs/pretrain")
    with member.set_up():
        with member.ranks.agreed():
            recipe = member.fixed(recipe)
            if recipe.batch_size % member.ranks.count:
                raise ConfigError(
                    f"batch_size = {recipe.batch_size} cannot be divided among {member.ranks.count} ranks. Use a multiple of "
                    f"{member.ranks.count}.",
                    agreed=True,
                )
            denoiser, tokenizer = _start_model(recipe, member.accelerator)
            expert_use = ExpertUse.of(denoiser)
            usable = _usable(recipe, denoiser, tokenizer)
            adapters = equip(recipe, denoiser, recipe.model)
            corpus = Corpus(recipe, denoiser, tokenizer, usable.rows["train"])
            optimizers = make_optimizers(denoiser, recipe.optim, recipe.muon_learning_rate)
            mark = base_mark(denoiser, adapters)
            policy = TrainedPolicy(denoiser, tokenizer, adapters, None, optimizers, mark, expert_use)
            folder = member.open_folder(recipe, usable, resume=resume)
            member.tell(trained_parts(recipe, policy))

        def card(lines: list[dict[str, Any]], notes: list[str]) -> str:
            return pretraining_card(recipe, lines, folder.data, denoiser, notes)

        remedy = "a smaller optim.learning_rate or muon_learning_rate"
        session = Session(member, recipe, folder, policy, card, remedy, saves_last=False, observe=observe)
    return session.run(lambda: PretrainingSteps(session, recipe, corpus))


class PretrainingSteps:
    """The steps of a pretraining run.

    Args:
        session: the run; its checkpoint is loaded.
        recipe: settings of the run.
        corpus: encoded demonstrations.
    """

    def __init__(self, session: Session, recipe: PretrainRecipe, corpus: Corpus) -> None:
        self.session, self.recipe, self.corpus = session, recipe, corpus
        self.share = session.ranks.share(recipe.batch_size)
        session.model.train()

    def step(self, index: int) -> dict[str, Any]:
        """Do the training step `index`, counted from 0, and return its metrics."""
        recipe, session, started = self.recipe, self.session, time.perf_counter()
        session.progress.begin(index + 1, "update")
        device, generator = session.accelerator.device, named_generator(recipe.seed, "pretrain", index)
        batch = self.corpus.draw(generator, self.share, device)
        for optimizer in session.optimizers:
            optimizer.zero_grad()
        with _seeded(recipe.seed, index, session.ranks.index, device):
            loss = add_gradient(session.accelerator, session.model, self.corpus, batch, recipe.max_tokens_per_forward)
        # All ranks see the same mean, so that all stop if it is not finite.
        losses = session.ranks.objects(loss)
        mean = sum(losses) / len(losses)
        if not math.isfinite(mean):
            raise FloatingPointError(f"the loss is {mean}")
        set_learning_rate(session.optimizers, recipe.optim, index, recipe.max_steps)
        backend.step(session.accelerator, session.model, session.optimizers, recipe.optim.max_grad_norm)
        metrics = {"loss": mean} | self._use_of_experts()
        return metrics | {"time/step": time.perf_counter() - started}

    def _use_of_experts(self) -> dict[str, float]:
        """Return the metrics of a mixture of experts; none for other models."""
        use, tally = self.session.policy.expert_use, Tally()
        if use is None:
            return {}
        use.take(tally)
        return tally.reduce(self.session.accelerator)

    def evaluate(self, step: int) -> dict[str, Any]:
        """Return no metrics: pretraining does not evaluate."""
        return {}


def add_gradient(
    accelerator: Accelerator, model: torch.nn.Module, corpus: Corpus, batch: PretrainBatch, max_tokens: int | None
) -> float:
    """Back-propagate the loss of a batch part by part, and return the loss.

    Args:
        accelerator: accelerator of the run.
        model: the model, prepared for distributed training.
        corpus: computes the loss.
        batch: demonstrations of this rank.
        max_tokens: rows times tokens in one part; None for one part.
    """
    loss, parts = 0.0, batch.split(max_tokens)
    for i, part in enumerate(parts):
        is_last = i == len(parts) - 1
        share = corpus.loss(model, part) * (len(part) / len(batch))
        backend.backward(accelerator, model, share, is_last)
        loss += float(share.detach())
    return loss


@contextmanager
def _seeded(seed: int, step: int, rank: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators, which dropout uses, from the seed, the step and the rank.
    Restore them when the block ends."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(named_generator(seed, "dropout", step, rank).initial_seed())
        yield


def _usable(recipe: PretrainRecipe, denoiser: Denoiser, tokenizer: PreTrainedTokenizerBase) -> Usable:
    """Return the examples whose prompt and demonstration fit into the model."""
    candidates = recipe.task.candidates("train", recipe.num_rows, recipe.seed)
    length = completion_length(recipe)
    faults_of = faults_for(recipe.task, denoiser, tokenizer, length, needs_answer=True, is_learnt=True)
    return usable_rows({"train": candidates}, faults_of)


def _start_model(recipe: PretrainRecipe, accelerator: Accelerator) -> Policy:
    device = accelerator.device
    if recipe.model is not None:
        return load_policy(recipe, recipe.model, device, is_sharded=backend.is_sharded(accelerator))
    tokenizer = word_tokenizer(recipe.task.tokens)
    denoiser = tiny_denoiser(recipe.tiny, tokenizer, recipe.seed)
    return Policy(denoiser.to(weights_dtype(device, recipe.precision)), tokenizer)
