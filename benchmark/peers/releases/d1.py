"""d1, with diffu-GRPO."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from benchmark.peers.releases.base import Release, Source
from benchmark.peers.setting import MASK


class D1(Release):
    """diffu-GRPO (github.com/dllm-reasoning/d1)."""

    sources = (
        Source(
            "d1/diffu-grpo/diffu_grpo_trainer.py",
            (
                "compute_loss", "add_gumbel_noise", "generate", "forward_process", "get_logits",
                "get_num_transfer_tokens", "_get_per_token_logps",
            ),
            "the fork xukp20/d1 at 03f4e69",
        ),
    )  # fmt: skip

    def attributes(self) -> dict[str, Any]:
        args = SimpleNamespace(num_iterations=2, p_mask_prompt=0.15, mask_id=MASK, cfg_scale=0.0, fp16=False)
        return {"args": args, "beta": 0.04, "epsilon": 0.5, "num_iterations": 2}

    @torch.no_grad()
    def rollout(self) -> Any:
        return self.trainer.generate(**self.generation())

    def prepare(self) -> None:
        setting = self.setting
        self.inputs = {
            "prompt_ids": setting.prompts, "prompt_mask": setting.prompt_mask, "completion_ids": setting.tokens,
            "completion_mask": torch.ones_like(setting.tokens), "advantages": setting.advantage, "mask_seeds": [0, 1],
        }  # fmt: skip

    @torch.no_grad()
    def score(self) -> Any:
        return self.trainer._get_per_token_logps(self.model, self.sequences.unsqueeze(0), self.shape.length, [0])

    def prepare_update(self) -> None:
        logps = self.score()
        self.inputs |= {"old_per_token_logps": logps, "ref_per_token_logps": logps}
