"""What tests of the masked-token methods share: log-probabilities read off the toy's table, surrogates, and one real update.

Nothing here calls a method, a plan or the replay to find out what they should do.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from accelerate import Accelerator
from torch import nn

from tests.helpers.rollouts import collect
from tests.helpers.runs import train_recipe
from tests.helpers.toy import Toy
from unmask.core.records import LossInputs
from unmask.functional.noise import named_generator
from unmask.models import char_tokenizer
from unmask.rewards import per_completion
from unmask.rewards.scorer import Scorer
from unmask.sampling import LogprobSettings, view_logprobs
from unmask.tasks import Sudoku
from unmask.trainer.learn import Learner
from unmask.trainer.metrics import Tally

EXACT = {"rtol": 0.0, "atol": 1e-10}


def token_logprobs(small, paths, hidden, temperature=None):
    """[paths, L] log p(x_i | x with `hidden` [L] or [paths, L] masked) with graph, from the table."""
    hidden = torch.as_tensor(hidden).expand(len(paths), small.L)
    tokens = torch.tensor([path.tokens for path in paths])
    state = (tokens.masked_fill(hidden, small.V) * small.denoiser.place).sum(-1)
    table = small.logprobs(small.temperature if temperature is None else temperature)[state]
    return table.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def scored(small, paths):
    """[paths, L] bool: up to and including the first EOS."""
    lengths = [next((i + 1 for i, t in enumerate(p.tokens) if t == small.denoiser.eos_id), small.L) for p in paths]
    return torch.arange(small.L) < torch.tensor(lengths).unsqueeze(-1)


def surrogate_gradient(small, paths, value):
    """∇ Σ_τ p(τ) (r(τ) - E r) value(τ) with p held fixed: a value [paths] times its leave-one-out advantage, expected."""
    probability, reward = small.probability(paths).detach(), small.reward(paths)
    total = (probability * (reward - (probability * reward).sum()) * value).sum()
    return torch.autograd.grad(total, small.denoiser.table, retain_graph=True)[0]


def all_masks(length):
    """[2^L, L] bool."""
    return torch.cartesian_prod(*[torch.tensor([False, True])] * length).view(-1, length)


class PromptToy(Toy):
    """A toy with a prompt of two tokens: masking some of them multiplies each logit by a number of its own."""

    def __init__(self, denoiser, **options):
        super().__init__(PromptDenoiser(denoiser), **options)

    def trajectory(self, paths, seed=None, dtype=torch.float32):
        prompt = torch.tensor([[0, 1]]).expand(len(paths), 2)
        return replace(
            super().trajectory(paths, seed, dtype), prompt_ids=prompt, prompt_mask=torch.ones_like(prompt).bool()
        )


class PromptDenoiser(nn.Module):
    def __init__(self, denoiser):
        super().__init__()
        self.denoiser, self.table, self.place = denoiser, denoiser.table, denoiser.place
        self.num_tokens, self.length = denoiser.num_tokens, denoiser.length
        self.mask_id, self.eos_id, self.position_head = denoiser.mask_id, denoiser.eos_id, None
        shape = (4, self.length, self.num_tokens + 1)
        self.factor = 2 * torch.rand(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        self.factor[0] = 1.0

    def forward(self, ids, attention_mask, positions):
        pattern = ((ids[:, :2] == self.mask_id) * torch.tensor([1, 2])).sum(-1)
        return self.denoiser(ids, attention_mask, positions) * self.factor[pattern.unsqueeze(-1), positions - 2]


class Watched(nn.Module):
    """A denoiser that notes the rows of each forward with graph, and when the gradient of its logits arrived."""

    def __init__(self, denoiser):
        super().__init__()
        self.denoiser, self.mask_id, self.eos_id = denoiser, denoiser.mask_id, denoiser.eos_id
        self.events = []

    def forward(self, ids, attention_mask, positions):
        logits = self.denoiser(ids, attention_mask, positions)
        if torch.is_grad_enabled():
            self.events.append(len(ids))
            logits.register_hook(lambda _: self.events.append("backward"))
        return logits


class OneUpdate:
    """Updates of the lively denoiser by the real trainer from one rollout of 12 completions."""

    TOKENIZER = char_tokenizer(Sudoku().alphabet)

    def __init__(self, denoiser, folder):
        self.denoiser, self.folder, self.accelerator = denoiser, folder, Accelerator()
        self.start = {name: value.clone() for name, value in denoiser.state_dict().items()}

    def recipe(self, method, *overrides):
        settings = ("num_generations=3", "num_prompts=4", "optim.max_grad_norm=1.0e9", "optim.warmup_steps=0")
        recipe = train_recipe(self.folder, self.folder, *settings, *overrides)
        return recipe.model_copy(update={"method": method})

    def rollout(self, recipe):
        self.denoiser.load_state_dict(self.start)
        ones = per_completion(lambda completions, **_: [text.count("1") + 0.1 * len(text) for text in completions])
        scorer = Scorer({"ones": ones})
        rows = Sudoku().rows("train", 4)
        return collect(self.denoiser, self.TOKENIZER, scorer, recipe, rows, 0, slice(None), Tally())

    def __call__(self, method, *overrides, rollout=None):
        """The metrics and the gradient of the last update; `events` holds what `Watched` saw."""
        recipe = self.recipe(method, *overrides)
        rollout = self.rollout(recipe) if rollout is None else rollout
        self.denoiser.load_state_dict(self.start)
        model = Watched(self.denoiser)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=0.0)
        learner = Learner(self.accelerator, model, self.accelerator.prepare(optimizer), None, recipe)
        tally = Tally()
        learner.update(rollout, 0, named_generator(0, "update", 0), tally)
        self.events = model.events
        return tally.reduce(self.accelerator), self._gradient()

    def one_graph(self, method, rollout):
        """The gradient of the first update with all views in one graph."""
        self.denoiser.load_state_dict(self.start)
        self.denoiser.zero_grad()
        views = method.plan(rollout, named_generator(0, "update", 0))
        new = view_logprobs(
            self.denoiser, rollout.trajectory, views, LogprobSettings.of(rollout.trajectory, "sampling")
        ).logprob
        advantage = method.advantage(rollout)[views.row]
        fields = {"row": views.row, "target": views.target, "weight": views.weight, "slot": views.slot}
        given = LossInputs(new, new.detach(), None, None, **fields, advantage=advantage, group_size=rollout.group_size)
        (method.loss(given).loss.sum() / len(rollout.reward)).backward()
        return self._gradient()

    def _gradient(self):
        return torch.cat([p.grad.flatten() for p in self.denoiser.parameters() if p.grad is not None])
