"""dLLM-RL, with TraceRL for LLaDA, without a value model and without its cache."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmark.peers.releases.base import Release, Source
from benchmark.peers.setting import EOS, MASK, NUM_SELECTED, ROLLOUT_STEPS, TEMPERATURE, Shape


class DllmRL(Release):
    """dLLM-RL (github.com/Gen-Verse/dLLM-RL) with TraceRL, with four segments of a path."""

    sources = (
        Source(
            "dLLM-RL/sample/llada_rl_rollout.py",
            (
                "generate_with_prefix_cache", "get_transfer_index", "add_gumbel_noise", "get_num_transfer_tokens",
                "DiffusionOutput", "denoise_step_map",
            ),
            "Gen-Verse/dLLM-RL at 2fdbe36",
        ),
        Source(
            "dLLM-RL/train/rl_llada.py",
            (
                "collapse_k_unique", "prepare_inputs_and_labels_for_text", "compute_logp_old_tok_parallel",
                "forward_process",
            ),
            "the fork pixeli99/dLLM-RL at f684d0d",
        ),
    )  # fmt: skip

    @classmethod
    def rollout_steps(cls, shape: Shape) -> int:
        # The loop always has a second step in a block.
        return max(ROLLOUT_STEPS, 2 * shape.length // shape.block)

    def names(self) -> dict[str, Any]:
        shape = self.shape
        training = SimpleNamespace(
            method="TraceRL", max_gen_length=shape.length, lower_p=0.1, upper_p=0.9,
            shrink=shape.steps // NUM_SELECTED, post_num=None, eps=0.2, beta=0.01, use_kl_estimator_k3=True,
        )  # fmt: skip
        return {
            "config": SimpleNamespace(training=training), "model": self.model, "mask_id": MASK, "pad_id": EOS,
            "uni_prompting": self.joined,
        }  # fmt: skip

    def joined(self, texts: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, int, int]:
        """Stand in for the encoding of prompts and responses, which are tokens here."""
        sequences = torch.cat(texts, dim=1)
        return sequences, sequences.clone(), self.shape.prompt, 0

    def rollout(self) -> Any:
        shape = self.shape
        found = self.functions["generate_with_prefix_cache"](
            self.model, self.setting.prompts, steps=self.rollout_steps(shape), gen_length=shape.length, block_length=shape.block,
            temperature=TEMPERATURE, target="confidence", mask_id=MASK, further_horizon=None, use_cache=False,
            unmask_threshold=None,
        )  # fmt: skip
        rows = range(len(found.sequences))
        return found.sequences, [self.functions["denoise_step_map"](found.history, MASK, i) for i in rows]

    def prepare(self) -> None:
        setting = self.setting
        maps, advantage = setting.unmask_step.tolist(), setting.advantage.tolist()
        views, labels, mask, rewards, _, _ = self.functions["prepare_inputs_and_labels_for_text"](
            setting.prompts, setting.tokens, maps, advantage
        )
        index = torch.arange(len(views))
        signal = torch.tensor(rewards, device=self.device)
        self.batches = [
            {"ids": i, "input_ids": views[i], "labels": labels[i], "p_mask_lm": mask[i], "adv": signal[i]}
            for i in index.split(self.shape.batch)
        ]  # fmt: skip
        self.data = SimpleNamespace(logp_old_tok=torch.full(views.shape, float("-inf")))

    @torch.no_grad()
    def score(self) -> Any:
        self.functions["compute_logp_old_tok_parallel"](
            self.trainer.accelerator, self.data, self.batches, self.shape.prompt, EOS, self.shape.batch
        )
        return self.data.logp_old_tok

    def prepare_update(self) -> None:
        self.score()

    def backward(self) -> None:
        for batch in self.batches:
            old = self.data.logp_old_tok[batch["ids"]].to(self.device)
            loss = self.functions["forward_process"](
                batch["input_ids"], batch["labels"], batch["p_mask_lm"], batch["adv"], old
            )
            (loss / len(self.batches)).backward()
