"""Rollouts by the local engine, from a model, a tokenizer and the limits of a batch."""

from __future__ import annotations

from unmask.engine import BatchLimits, LocalEngine
from unmask.models import Policy
from unmask.trainer.collect import Collector
from unmask.trainer.metrics import Tally


def generate(denoiser, tokenizer, prompts, sampler, seeds, *, batch_size=256, max_tokens=None, **options):
    """Returns the trajectory of one completion for each prompt."""
    engine = LocalEngine(Policy(denoiser, tokenizer), BatchLimits(batch_size, max_tokens))
    return engine.rollout(prompts, sampler, seeds, **options)


def collect(denoiser, tokenizer, scorer, recipe, rows, step=0, share=slice(None), tally=None, max_tokens=None):
    """Returns the scored rollout of one training step."""
    engine = LocalEngine(Policy(denoiser, tokenizer), BatchLimits(recipe.rollout_batch_size, max_tokens))
    return Collector(engine, scorer, recipe).collect(rows, step, share, tally or Tally())
