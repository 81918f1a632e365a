"""DARE, with its actors of diffu-GRPO and of CJ-GRPO. The loop of an update around the forward pass
and the loss is written here after that of the release, which runs on verl's data."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor

from benchmark.peers.releases.base import Release, Source
from benchmark.peers.setting import EOS, MASK, ROLLOUT_STEPS

SHARED = (
    Source("DARE/verl/workers/actor/mdlm_sp_utils.py", ("get_packed_logits",), "yjyddq/DARE at af42fb8"),
    Source("DARE/verl/trainer/ppo/dllm_core_algos.py", ("compute_policy_loss",), "yjyddq/DARE at 2ca6962"),
)
"""Files that both actors use."""


class Packed:
    """A model that takes the rows of a batch one after another, as DARE's models do. All rows have
    one length here, so they are a batch again inside."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, packed: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> SimpleNamespace:
        """Return the logits [1, B S, V] of packed tokens [1, B S]."""
        logits = self.model(packed.view(len(cu_seqlens) - 1, -1)).logits
        return SimpleNamespace(logits=logits.view(1, -1, logits.shape[-1]))


class DARE(Release):
    """DARE (github.com/yjyddq/DARE) with diffu-GRPO."""

    sampler: ClassVar[str] = "generate"
    """Function that denoises."""
    options: ClassVar[dict[str, Any]] = {}
    """Further arguments of this function."""
    sources = (
        Source(
            "DARE/verl/workers/rollout/generate.py",
            ("generate", "add_gumbel_noise", "get_num_transfer_tokens"),
            "the fork hxhcreate/DARE at 4521b47",
        ),
        Source(
            "DARE/verl/workers/actor/llada_dp_actor_d1.py",
            ("_forward_micro_batch", "_get_logits"),
            "yjyddq/DARE at af42fb8",
        ),
        *SHARED,
    )

    def attributes(self) -> dict[str, Any]:
        self.packed = Packed(self.model)
        return {"actor_module": self.packed, "MASK_TOKEN_ID": MASK}

    def rollout(self) -> Any:
        batch, width = self.sequences.shape
        masked = torch.full_like(self.setting.tokens, MASK)
        arguments = self.generation() | self.options | {"model": self.packed, "eos_id": EOS, "mode": "train"}
        del arguments["prompt"]
        return self.functions[self.sampler](
            packed_sequence=torch.cat([self.setting.prompts, masked], dim=1).view(1, -1),
            cu_seqlens=torch.arange(0, batch * width + 1, width, dtype=torch.int32, device=self.device),
            max_seqlen=width,
            **arguments,
        )

    def prepare(self) -> None:
        masked = self.masked_prompts().unsqueeze(1)
        self.inputs = self.batch() | {
            "perturbed_seq": masked, "mask_indices": masked == MASK, "p_mask": torch.ones(masked.shape, device=self.device),
        }  # fmt: skip

    def batch(self) -> dict[str, Any]:
        """Return the columns that both actors read."""
        sequences = self.sequences
        advantage = self.setting.advantage.unsqueeze(1).expand_as(self.setting.tokens)
        return {
            "input_ids": sequences, "responses": self.setting.tokens, "attention_mask": torch.ones_like(sequences),
            "advantages": advantage,
        }  # fmt: skip

    @torch.no_grad()
    def score(self) -> Any:
        return self.trainer._forward_micro_batch(self.inputs, temperature=1.0, n_l=1, mc_num=1)[1]

    def prepare_update(self) -> None:
        self.inputs["old_log_probs"] = self.score()

    def backward(self) -> None:
        _, log_prob, _ = self.trainer._forward_micro_batch(self.inputs, temperature=1.0, n_l=1, mc_num=1)
        self.loss(0, log_prob[:, 0], self.inputs["mask_indices"][:, 0]).backward()

    def loss(self, index: int, log_prob: Tensor, mask: Tensor) -> Tensor:
        """Return the loss of one view of each completion."""
        loss: Tensor = self.functions["compute_policy_loss"](
            old_l_theta=self.inputs["old_log_probs"][:, index],
            l_theta=log_prob,
            advantages=self.inputs["advantages"],
            response_mask=mask[:, -self.shape.length :],
            cliprange=0.2,
            loss_agg_mode="token-mean",
        )[0]
        return loss


class DareCJ(DARE):
    """DARE with CJ-GRPO, which replays as many states as a rollout of the comparison has steps."""

    sampler = "reversed_process"
    options: ClassVar[dict[str, Any]] = {"step_merge": False}
    sources = (
        Source(
            "DARE/verl/workers/rollout/generate.py",
            ("reversed_process", "add_gumbel_noise", "get_num_transfer_tokens"),
            "the fork hxhcreate/DARE at 4521b47",
        ),
        Source(
            "DARE/verl/workers/actor/llada_dp_actor_cj_grpo.py",
            ("_step_forward_micro_batch", "_forward_micro_batch", "_get_logits"),
            "yjyddq/DARE at af42fb8",
        ),
        *SHARED,
    )

    def prepare(self) -> None:
        step = self.setting.unmask_step * ROLLOUT_STEPS // self.shape.steps
        committed = step.unsqueeze(1) == torch.arange(ROLLOUT_STEPS, device=self.device).view(1, -1, 1)
        prompt = committed.new_zeros(len(step), ROLLOUT_STEPS, self.shape.prompt)
        self.inputs = self.batch() | {"reversed_traj_unmask_positions": torch.cat([prompt, committed], dim=-1)}

    @torch.no_grad()
    def score(self) -> Any:
        return self.trainer._forward_micro_batch(self.inputs, temperature=1.0)[1]

    def backward(self) -> None:
        mask = self.inputs["reversed_traj_unmask_positions"]
        for step in range(ROLLOUT_STEPS):
            _, log_prob, _ = self.trainer._step_forward_micro_batch(self.inputs, step_idx=step, temperature=1.0)
            (self.loss(step, log_prob, mask[:, step]) / ROLLOUT_STEPS).backward()
