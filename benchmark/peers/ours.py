"""A training step of this package at its default settings, in three phases."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from accelerate import Accelerator

from benchmark.peers.releases import RELEASES
from benchmark.peers.setting import NUM_SELECTED, ROLLOUT_STEPS, TEMPERATURE, Setting
from unmask.core.config import SamplerConfig
from unmask.core.records import Rollout, Trajectory
from unmask.recipes.load import load_recipe
from unmask.sampling import LogprobSettings, denoise
from unmask.trainer.learn import Learner
from unmask.trainer.metrics import Tally
from unmask.trainer.scored_views import ScoredViews

METHODS = {
    "EGSPO": f"{{type: egspo_sa, num_selected: {NUM_SELECTED}}}",
    "d1": "{type: diffu_grpo}",
    "ESPO": "{type: espo, num_samples: 2}",
    "AGRPO": f"{{type: agrpo, mc_samples: {NUM_SELECTED}}}",
    "dllm": "{type: diffu_grpo}",
    "DARE": "{type: diffu_grpo}",
    "DARE cj": f"{{type: cj_grpo, num_segments: {ROLLOUT_STEPS}, beta: 0}}",
    "dLLM-RL": f"{{type: trace_rl, num_segments: {NUM_SELECTED}}}",
}
"""The method that stands beside each release."""


class Ours:
    """This package beside a release, with the same model and completions."""

    def __init__(self, release: str, setting: Setting) -> None:
        self.setting, shape = setting, setting.shape
        self.rollout_steps = RELEASES[release].rollout_steps(shape)
        sampler = f"{{max_completion_length: {shape.length}, num_steps: {shape.steps}, block_length: {shape.block}, "
        sampler += f"temperature: {TEMPERATURE}, order: low_confidence}}"
        overrides = [
            f"method={METHODS[release]}", f"sampler={sampler}", "model=none", f"output_dir={tempfile.gettempdir()}",
            "num_iterations=2", f"num_generations={setting.group_size}", f"num_prompts={shape.batch // setting.group_size}",
        ]  # fmt: skip
        if shape.views_per_forward is not None:
            overrides.append(f"views_per_forward={shape.views_per_forward}")
        self.recipe = load_recipe("sudoku-tiny", overrides)
        optimizer = torch.optim.AdamW(setting.denoiser.parameters(), lr=1e-5)
        accelerator = Accelerator(cpu=setting.device.type == "cpu")
        self.learner = Learner(accelerator, setting.denoiser, accelerator.prepare(optimizer), None, self.recipe)
        self.scored: Any = None

    def rollout(self) -> Trajectory:
        """Denoise the prompts, with what the method records."""
        setting = self.setting
        seeds = torch.arange(len(setting.prompts), device=setting.device)
        sampler: SamplerConfig = self.recipe.sampler.model_copy(update={"num_steps": self.rollout_steps})
        needs = self.recipe.method.needs()
        return denoise(setting.denoiser, setting.prompts, setting.prompt_mask, sampler, seeds, needs=needs)

    def prepare(self) -> None:
        """Plan the views of the finished completions and score them, outside the measurement."""
        setting, method, device = self.setting, self.recipe.method, self.setting.device
        rows, length = setting.tokens.shape
        selected = torch.stack([torch.randperm(setting.shape.steps)[:NUM_SELECTED] for _ in range(rows)])
        path = Trajectory(
            prompt_ids=setting.prompts,
            prompt_mask=setting.prompt_mask,
            tokens=setting.tokens,
            unmask_step=setting.unmask_step.int(),
            logprob=setting.logprob,
            entropy=setting.entropy,
            seed=torch.arange(rows, device=device),
            sampler=self.recipe.sampler,
            mask_id=setting.denoiser.mask_id,
            eos_id=setting.denoiser.eos_id,
            selected_step=selected.int().to(device),
            one_step_tokens=torch.zeros(rows, NUM_SELECTED, length, dtype=torch.int32, device=device),
        )
        values = torch.randn(rows, NUM_SELECTED, device=device) if method.needs().greedy else None
        rollout = Rollout(path, setting.group_size, setting.reward, values)
        plan = method.plan(rollout, torch.Generator().manual_seed(0))
        advantage = method.advantage(rollout)
        advantage = advantage[plan.row] if advantage.dim() == 1 else advantage[plan.row, plan.slot]
        scoring = LogprobSettings.of(path, "sampling")
        self.scored = ScoredViews(rollout, (plan, advantage), plan, advantage, None, None, scoring, float(length), None)

    def score(self) -> Any:
        """Run one pass over the views without a graph, as for the old and the reference policy."""
        scored = self.scored
        return self.learner._logprobs(self.learner.model, scored.rollout, scored.views, scored.settings)

    def prepare_update(self) -> None:
        """Give the loss its old and reference log-probabilities."""
        from dataclasses import replace

        old = self.score()
        self.scored = replace(self.scored, old=old, reference=old if self.learner.passes.scores_reference else None)

    def update(self) -> None:
        """Make one optimizer step on all views."""
        self.learner._minibatch(self.scored, torch.arange(len(self.setting.tokens)), Tally(), is_first=False)
