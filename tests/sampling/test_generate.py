"""The function `generate` of the public API, held to the engine below it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.messages import raises
from unmask import decode, generate, load_model
from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError, DataError
from unmask.core.records import Needs
from unmask.functional.noise import named_generator
from unmask.models import Policy
from unmask.sampling.encoding import row_seeds
from unmask.sampling.engine import LocalEngine

SAMPLER = SamplerConfig(max_completion_length=6, num_steps=3, temperature=1.0)
PROMPTS = ["12=", "1234="]


@pytest.fixture(scope="module")
def policy(tiny_model: Path) -> Policy:
    return load_model(tiny_model)


def test_the_trajectory_is_that_of_the_engine_with_the_seeds_that_are_drawn_from_the_seed(policy: Policy) -> None:
    path = generate(policy, PROMPTS, SAMPLER, seed=5, num_generations=2, needs=Needs(greedy=True, selection=("all", 1)))
    seeds = row_seeds(4, named_generator(5, "sample"))
    repeated = [PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]]
    expected = LocalEngine(policy).rollout(repeated, SAMPLER, seeds, needs=Needs(greedy=True, selection=("all", 1)))
    for name in ("prompt_ids", "tokens", "unmask_step", "seed", "one_step_tokens"):
        assert torch.equal(getattr(path, name), getattr(expected, name)), name
    assert path.sampler == SAMPLER
    # Another seed gives other completions.
    assert not torch.equal(generate(policy, PROMPTS, SAMPLER, seed=6).tokens, path.tokens[::2])


def test_each_completion_may_have_a_seed_of_its_own(policy: Policy) -> None:
    both = generate(policy, PROMPTS, SAMPLER, seed=torch.tensor([7, 8]))
    second = generate(policy, PROMPTS[1:], SAMPLER, seed=torch.tensor([8]))
    assert torch.equal(both.tokens[1:], second.tokens)


def test_one_prompt_may_stand_alone_and_texts_are_decoded(policy: Policy) -> None:
    path = generate(policy, "12=", SAMPLER)
    assert torch.equal(path.tokens, generate(policy, ["12="], SAMPLER).tokens)
    (text,) = decode(policy.tokenizer, path.tokens)
    assert {*text} <= {*"01234="}


def test_a_chat_is_one_prompt(policy: Policy) -> None:
    tokenizer = load_model(policy.tokenizer.name_or_path).tokenizer
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}={% endfor %}"
    chat = [{"role": "user", "content": "12"}]
    path = generate(Policy(policy.denoiser, tokenizer), chat, SAMPLER)
    assert torch.equal(path.tokens, generate(policy, "12=", SAMPLER).tokens)
    assert len(generate(Policy(policy.denoiser, tokenizer), [chat, chat], SAMPLER).tokens) == 2


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"prompts": []}, DataError, ("no prompt",)),
        ({"num_generations": 0}, DataError, ("num_generations",)),
        ({"seed": torch.zeros(3, dtype=torch.long)}, ConfigError, ("[3]", "2 completions")),
        ({"policy": "runs/mine"}, ConfigError, ("policy has the type str", "load_model")),
        ({"sampler": None}, DataError, ("256", "max_completion_length")),
        ({"sampler": {"num_steps": 4}}, ConfigError, ("dict", "SamplerConfig")),
        ({"prompts": [{"prompt": "12=", "answer": "3"}]}, DataError, ("rows", 'row["prompt"]')),
        ({"prompts": {"prompt": "12=", "answer": "3"}}, DataError, ("rows", 'row["prompt"]')),
    ],
    ids=["no prompt", "no completion", "seeds", "policy", "too long", "sampler", "rows", "row"],
)
def test_what_cannot_be_generated_is_refused(
    policy: Policy, changes: dict[str, Any], error: type[Exception], words: tuple[str, ...]
) -> None:
    with raises(error, *words):
        generate(**{"policy": policy, "prompts": PROMPTS, "sampler": SAMPLER} | changes)
