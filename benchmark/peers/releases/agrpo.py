"""AGRPO."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from benchmark.peers.releases.base import Release, Source
from benchmark.peers.setting import EOS, MASK, NUM_SELECTED, ROLLOUT_STEPS, TEMPERATURE


class AGRPO(Release):
    """AGRPO (github.com/probablyabot/agrpo), with four draws."""

    sources = (
        Source(
            "agrpo/agrpo_trainer.py",
            ("compute_loss", "_get_per_token_logps_and_entropies"),
            "probablyabot/agrpo at 98f1182",
        ),
        Source("agrpo/generate.py", ("gumbel_sample", "generate"), "probablyabot/agrpo at 837b292"),
    )
    scores = False

    def attributes(self) -> dict[str, Any]:
        self.args = SimpleNamespace(
            low_discrepancy=True, importance_sampling="entropy", mask_token_id=MASK, unmasking="low_confidence",
            max_completion_length=self.shape.length, block_length=self.shape.block, sampling_steps=ROLLOUT_STEPS,
            temperature=TEMPERATURE, top_k=0, top_p=1.0,
        )  # fmt: skip
        return {
            "args": self.args, "beta": 0.0, "epsilon_low": 0.2, "epsilon_high": 0.2, "temperature": TEMPERATURE,
            "mc_samples": NUM_SELECTED, "sampling_steps": self.shape.steps, "eos_token_id": EOS,
            "num_generations": self.setting.group_size, "current_gradient_accumulation_steps": 1,
        }  # fmt: skip

    def rollout(self) -> Any:
        setting = self.setting
        return self.functions["generate"](self.model, setting.prompts, self.args, attention_mask=setting.prompt_mask)

    def prepare(self) -> None:
        setting = self.setting
        self.inputs = {
            "prompt_ids": setting.prompts, "prompt_mask": setting.prompt_mask, "completion_ids": setting.tokens,
            "advantages": setting.advantage, "unmask_steps": setting.unmask_step,
            "sampling_masks": torch.ones(*setting.tokens.shape, self.shape.vocab, dtype=torch.bool, device=self.device),
            "old_per_token_logps": setting.logprob, "old_per_token_entropies": setting.entropy,
        }  # fmt: skip

    @torch.no_grad()
    def score(self) -> Any:
        setting, found = self.setting, []
        whole = torch.ones_like(self.sequences, dtype=torch.bool)
        for step in range(NUM_SELECTED):
            state = setting.tokens.masked_fill(setting.unmask_step >= step, MASK)
            ids = torch.cat([setting.prompts, state], dim=1)
            here = setting.unmask_step == step
            found.append(
                self.trainer._get_per_token_logps_and_entropies(
                    self.model, ids, whole, self.inputs["sampling_masks"], here, setting.tokens
                )
            )
        return found
