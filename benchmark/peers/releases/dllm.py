"""dllm, with its trainer of diffu-GRPO."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from benchmark.peers.releases.base import Release, Source
from benchmark.peers.setting import EOS, MASK, ROLLOUT_STEPS, TEMPERATURE


class Dllm(Release):
    """dllm (github.com/ZHZisZZ/dllm), whose trainer computes the loss of TRL."""

    sources = (
        Source("dllm/dllm/core/samplers/mdlm.py", ("sample",), "ZHZisZZ/dllm at 13ba372"),
        Source(
            "dllm/dllm/core/samplers/utils.py",
            ("get_num_transfer_tokens", "add_gumbel_noise"),
            "ZHZisZZ/dllm at 2d962f3",
        ),
        Source(
            "dllm/dllm/core/schedulers/alpha.py",
            ("BaseAlphaScheduler", "LinearAlphaScheduler"),
            "ZHZisZZ/dllm at 2d962f3",
        ),
        Source(
            "dllm/dllm/pipelines/rl/grpo/trainer.py",
            ("_forward_process", "_get_per_token_logps"),
            "the fork autonull/dllm at 9e448d2",
        ),
        Source("trl/trl/trainer/grpo_trainer.py", ("_compute_loss",), "the package trl 0.19.1"),
    )

    def attributes(self) -> dict[str, Any]:
        shape = self.shape
        self.config = SimpleNamespace(
            steps=ROLLOUT_STEPS, max_new_tokens=shape.length, max_length=None, block_size=shape.block,
            temperature=TEMPERATURE, cfg_scale=0.0, cfg_keep_tokens=None, remasking="low_confidence",
            suppress_tokens=None, begin_suppress_tokens=None, stochastic_transfer=False, return_dict=False,
            right_shift_logits=False,
        )  # fmt: skip
        tokens = SimpleNamespace(mask_token_id=MASK, bos_token_id=EOS, eos_token_id=EOS)
        return {
            "args": SimpleNamespace(p_mask_prompt=0.15, delta=None), "sampler_config": self.config,
            "processing_class": tokens, "tokenizer": tokens, "scheduler": self.functions["LinearAlphaScheduler"](),
            "beta": 0.04, "epsilon_low": 0.5, "epsilon_high": 0.5, "loss_type": "bnpo", "_current_mask_seed": 0,
        }  # fmt: skip

    def rollout(self) -> Any:
        return self.trainer.sample(list(self.setting.prompts), self.config)

    def prepare(self) -> None:
        setting = self.setting
        self.inputs = {
            "prompt_ids": setting.prompts, "prompt_mask": setting.prompt_mask.long(), "completion_ids": setting.tokens,
            "completion_mask": torch.ones_like(setting.tokens), "advantages": setting.advantage,
        }  # fmt: skip

    @torch.no_grad()
    def score(self) -> Any:
        sequences = self.sequences
        return self.trainer._get_per_token_logps(
            self.model, sequences, torch.ones_like(sequences), self.shape.length, seed=0
        )

    def prepare_update(self) -> None:
        logps = self.score()
        self.inputs |= {"old_per_token_logps": logps, "ref_per_token_logps": logps}

    def backward(self) -> None:
        self.trainer._compute_loss(self.model, self.inputs).backward()
