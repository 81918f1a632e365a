"""EGSPO-SA from start to end on the public pieces: a sampler, pure functions, and a plain torch loop.

Read it top to bottom, or fork it. It does what `unmask train sudoku-tiny` does, without run folders, resume and trackers:

    python examples/minimal.py runs/demo/base/final

Per step: (1) draw prompts and G completions of each; (2) keep, for the K steps of highest entropy, the greedy one-step
completion x̂_k; (3) reward both; (4) R_k = (r + λ(r - r(x̂_k))) / (1 + λ), A_k = R_k - group mean; (5) a clipped update of
the K steps' log-probabilities.
"""

from __future__ import annotations

import argparse

import torch

import unmask as um
from unmask.functional.advantage import stepwise_advantage
from unmask.functional.noise import named_generator
from unmask.functional.surrogate import clipped_surrogate
from unmask.sampling import LogprobSettings, view_logprobs
from unmask.sampling.encoding import row_seeds

NUM_PROMPTS, GROUP_SIZE, NUM_SELECTED, NUM_ITERATIONS = 16, 4, 1, 2
STEPWISE_WEIGHT, LEARNING_RATE = 0.5, 6e-4


def train(model_folder: str, num_steps: int, seed: int = 0) -> float:
    """Train for `num_steps` and return the solve rate, sampled, of the last step's completions."""
    policy = um.load_model(model_folder)
    denoiser, tokenizer = policy
    task = um.tasks.Sudoku()
    reward = task.rewards()["sudoku"]
    rows = task.rows("train", 8000, seed)
    sampler = um.SamplerConfig(max_completion_length=16, num_steps=8, temperature=0.9, order="low_confidence")
    needs = um.Needs(greedy=True, selection=("entropy_topk", NUM_SELECTED))
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    solved = 0.0

    for step in range(num_steps):
        # (1) Rollout: 16 prompts, 4 completions each. All randomness of a row is in its seed.
        generator = named_generator(seed, "minimal", step)
        picked = torch.randint(len(rows), (NUM_PROMPTS,), generator=generator).tolist()
        batch = [rows[i] for i in picked for _ in range(GROUP_SIZE)]
        seeds = row_seeds(len(batch), generator)
        # (2) The sampler keeps x̂_k of the steps that the selection takes: their logits were there anyway.
        path = um.generate(policy, [row["prompt"] for row in batch], sampler, seed=seeds, needs=needs)
        assert path.selected_step is not None
        assert path.one_step_tokens is not None

        # (3) Rewards of the finished completions, [B], and of the one-step completions, [B, K].
        columns = {key: [row[key] for row in batch] for key in batch[0] if key != "prompt"}
        texts = um.decode(tokenizer, path.tokens)
        r = torch.tensor(reward([row["prompt"] for row in batch], texts, **columns))
        values = [
            torch.tensor(reward([row["prompt"] for row in batch], um.decode(tokenizer, fill), **columns))
            for fill in path.one_step_tokens.unbind(1)
        ]
        solved = sum(task.solved(text, row) for text, row in zip(texts, batch, strict=True)) / len(batch)

        # (4) Stepwise advantages, centred within the group, slot by slot.
        is_valid = path.selected_step >= 0
        advantage = stepwise_advantage(
            r, torch.stack(values, dim=1), is_valid, GROUP_SIZE, STEPWISE_WEIGHT, "group_mean"
        )

        # (5) Each selected step is a view: the state before it, with the tokens it committed as targets.
        row, slot = is_valid.nonzero(as_tuple=True)
        k = path.selected_step[row, slot].unsqueeze(-1)
        views = um.Views(
            row=row,
            hidden=path.unmask_step[row] >= k,
            target=path.unmask_step[row] == k,
            weight=torch.ones(len(row)),
            slot=slot,
        )
        scoring = LogprobSettings.of(path, "sampling")
        with torch.no_grad():
            old = view_logprobs(denoiser, path, views, scoring).logprob.sum(-1)
        factor = min(1.0, (step + 1) / 10) * (1 - 0.9 * step / max(1, num_steps - 1))
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * factor
        for _ in range(NUM_ITERATIONS):
            new = view_logprobs(denoiser, path, views, scoring).logprob.sum(-1)
            surrogate, _ = clipped_surrogate(new - old, advantage[row, slot], epsilon=0.2, epsilon_high=0.5)
            # A mean over completions and slots, per token of a step.
            loss = surrogate.sum() / (len(batch) * NUM_SELECTED) * sampler.steps / sampler.max_completion_length
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
            optimizer.step()

        if (step + 1) % 10 == 0 or step + 1 == num_steps:
            print(f"step {step + 1:>4}  reward {r.mean():.3f}  solved {solved:.3f}")
    return solved


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a base model, such as the one that `make demo` pretrains")
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    train(arguments.model, arguments.steps)
