"""ESPO."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from benchmark.peers.releases.base import Release, Source
from benchmark.peers.setting import MASK


class ESPO(Release):
    """ESPO (github.com/ML-GSAI/ESPO), with two pairs of coupled masks."""

    sources = (
        Source(
            "ESPO/espo/espo_trainer.py",
            (
                "forward_process", "compute_approx_kl", "compute_loss", "add_gumbel_noise", "generate", "get_logits",
                "get_num_transfer_tokens", "_get_elbo", "_get_elbo_mc",
            ),
            "ML-GSAI/ESPO at 8531903",
        ),
    )  # fmt: skip
    seeds = torch.arange(4).view(2, 2)

    def attributes(self) -> dict[str, Any]:
        args = SimpleNamespace(num_iterations=2, gradient_accumulation_steps=1, fp16=False)
        tokens = SimpleNamespace(mask_token_id=MASK)
        return {
            "args": args, "beta": 0.01, "epsilon_low": 0.2, "epsilon_high": 0.2, "num_iterations": 2, "num_mc": 2,
            "processing_class": tokens, "_step": 1,
        }  # fmt: skip

    def rollout(self) -> Any:
        return self.trainer.generate(**self.generation(), attention_mask=None)

    def prepare(self) -> None:
        setting = self.setting
        self.inputs = {
            "prompt_ids": setting.prompts, "completion_ids": setting.tokens, "advantages": setting.advantage,
            "mask_seeds": [self.seeds],
        }  # fmt: skip

    @torch.no_grad()
    def score(self) -> Any:
        sequences = self.sequences.unsqueeze(0)
        return self.trainer._get_elbo_mc(self.model, sequences, self.shape.length, self.seeds[:1], num_mc=2)

    def prepare_update(self) -> None:
        elbo = self.score()
        self.inputs |= {"old_per_token_logps": elbo, "ref_per_token_logps": elbo}
