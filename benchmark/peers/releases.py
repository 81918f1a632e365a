"""A training step of each release, from its own functions."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor

from benchmark.peers.setting import EOS, MASK, NUM_SELECTED, TEMPERATURE, Setting
from benchmark.peers.source import functions_of, trainer_of


class Release:
    """A release beside this package. `rollout`, `score` and `update` are measured."""

    file: ClassVar[str]
    """File of the functions, from the folder that holds all checkouts."""
    names: ClassVar[tuple[str, ...]]
    """Functions and methods that are taken from the file."""
    scores: ClassVar[bool] = True
    """False if a step of the release needs no pass over the views besides the update."""

    def __init__(self, checkouts: Path, setting: Setting) -> None:
        self.setting, self.shape = setting, setting.shape
        self.model: Any = setting.denoiser.backbone
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5)
        functions = functions_of(checkouts / self.file, self.names)
        self.trainer = trainer_of(functions, model=self.model, **self.attributes())
        self.inputs: dict[str, Any] = {}

    def attributes(self) -> dict[str, Any]:
        """Return the attributes that the methods read from the trainer."""
        raise NotImplementedError

    def rollout(self) -> Any:
        """Denoise the prompts, with what the release records."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Make the inputs of the loss from the finished completions, outside the measurement."""
        raise NotImplementedError

    def score(self) -> Any:
        """Run one pass over the views without a graph."""
        raise NotImplementedError

    def prepare_update(self) -> None:
        """Give the loss its old and reference log-probabilities."""

    def backward(self) -> None:
        """Compute the loss and back-propagate it."""
        self.trainer.compute_loss(self.model, self.inputs).backward()

    def update(self) -> None:
        """Make one optimizer step."""
        self.optimizer.zero_grad()
        self.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

    @property
    def sequences(self) -> Tensor:
        """[B, P + L] prompts with their completions."""
        return torch.cat([self.setting.prompts, self.setting.tokens], dim=1)

    def generation(self) -> dict[str, Any]:
        """Return the arguments of LLaDA's loop, which several releases have."""
        shape = self.shape
        return {
            "model": self.model, "prompt": self.setting.prompts, "steps": shape.steps, "gen_length": shape.length,
            "block_length": shape.block, "temperature": TEMPERATURE, "mask_id": MASK,
        }  # fmt: skip


class EGSPO(Release):
    """EGSPO (github.com/vishnutez/egspo-dllm-rl). Its K optimizer steps are one here."""

    file = "egspo-dllm-rl/egspo/egspo_trainer.py"
    names = (
        "compute_loss",
        "_gumbel_sample",
        "generate",
        "_transfer_counts",
        "_compute_step_logps",
        "_high_entropy_steps",
    )

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
        chosen = torch.stack([torch.randperm(self.shape.steps)[:NUM_SELECTED] for _ in tokens])
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


class D1(Release):
    """diffu-GRPO (github.com/dllm-reasoning/d1)."""

    file = "d1/diffu-grpo/diffu_grpo_trainer.py"
    names = (
        "compute_loss", "add_gumbel_noise", "generate", "forward_process", "get_logits", "get_num_transfer_tokens",
        "_get_per_token_logps",
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


class ESPO(Release):
    """ESPO (github.com/ML-GSAI/ESPO), with two pairs of coupled masks."""

    file = "ESPO/espo/espo_trainer.py"
    names = (
        "forward_process", "compute_approx_kl", "compute_loss", "add_gumbel_noise", "generate", "get_logits",
        "get_num_transfer_tokens", "_get_elbo", "_get_elbo_mc",
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


class AGRPO(Release):
    """AGRPO (github.com/probablyabot/agrpo), with four draws."""

    file = "agrpo/agrpo_trainer.py"
    names = ("compute_loss", "_get_per_token_logps_and_entropies")
    scores = False

    def __init__(self, checkouts: Path, setting: Setting) -> None:
        super().__init__(checkouts, setting)
        self.functions = functions_of(checkouts / "agrpo/generate.py", ("gumbel_sample", "generate"))

    def attributes(self) -> dict[str, Any]:
        self.args = SimpleNamespace(
            low_discrepancy=True, importance_sampling="entropy", mask_token_id=MASK, unmasking="low_confidence",
            max_completion_length=self.shape.length, block_length=self.shape.block, sampling_steps=self.shape.steps,
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
            "sampling_masks": torch.ones(*setting.tokens.shape, self.shape.vocab, dtype=torch.bool),
            "old_per_token_logps": setting.logprob, "old_per_token_entropies": setting.entropy,
        }  # fmt: skip

    @torch.no_grad()
    def score(self) -> Any:
        setting, found = self.setting, []
        whole = torch.ones(len(setting.tokens), self.shape.prompt + self.shape.length, dtype=torch.bool)
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


RELEASES: dict[str, type[Release]] = {"EGSPO": EGSPO, "d1": D1, "ESPO": ESPO, "AGRPO": AGRPO}
"""Releases by name."""
