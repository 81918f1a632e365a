"""EGSPO."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from benchmark.peers.releases.base import Release, Source
from benchmark.peers.setting import EOS, MASK, NUM_SELECTED


class EGSPO(Release):
    """EGSPO (github.com/vishnutez/egspo-dllm-rl). Its K optimizer steps are one here."""

    sources = (
        Source(
            "egspo-dllm-rl/egspo/egspo_trainer.py",
            (
                "compute_loss", "_gumbel_sample", "generate", "_transfer_counts", "_compute_step_logps",
                "_high_entropy_steps",
            ),
            "vishnutez/egspo-dllm-rl at 285b165",
        ),
    )  # fmt: skip

    def attributes(self) -> dict[str, Any]:
        args = SimpleNamespace(
            logps_eval_num_steps=NUM_SELECTED, logps_eval="unbiased", max_completion_length=self.shape.length,
            diffusion_steps=self.shape.steps, logps_aggregation="sum", epsilon=0.2, epsilon_high=0.5,
            use_exact_kl=False, pred_state="next", fp16=False,
        )  # fmt: skip
        tokens = SimpleNamespace(eos_token_id=EOS)
        return {"args": args, "beta": 0.04, "vocab_size": self.shape.vocab, "processing_class": tokens}

    def rollout(self) -> Any:
        found = self.trainer.generate(**self.generation(), return_metadata=True)
        return found, self.trainer._high_entropy_steps(found[2].permute(1, 0, 2, 3))

    def prepare(self) -> None:
        steps, tokens = self.setting.unmask_step, self.setting.tokens
        states = [tokens.masked_fill(steps >= step, MASK) for step in range(self.shape.steps + 1)]
        trajectory = torch.stack([torch.cat([self.setting.prompts, state], dim=1) for state in states])
        chosen = torch.stack([torch.randperm(self.shape.steps)[:NUM_SELECTED] for _ in tokens]).to(self.device)
        advantage = self.setting.advantage.unsqueeze(1).expand(-1, NUM_SELECTED)
        self.inputs = {"traj": trajectory, "eval_steps": chosen, "step_advs": advantage}

    @torch.no_grad()
    def score(self) -> Any:
        return self.trainer._compute_step_logps(
            self.model, self.inputs["traj"], eval_time_steps=self.inputs["eval_steps"], get_all_tokens_logps=True
        )

    def prepare_update(self) -> None:
        logps, all_logps = self.score()
        self.inputs |= {"old_logps": logps, "ref_logps": logps, "ref_all_logps": all_logps}

    def backward(self) -> None:
        for step in range(NUM_SELECTED):
            self.trainer._step = step
            super().backward()
