"""Settings of the comparison: a model, a batch of prompts, and finished completions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from unmask.models import Denoiser

MASK, EOS = 1, 2
TEMPERATURE = 0.9
NUM_SELECTED = 4
ROLLOUT_STEPS = 8
"""Denoising steps of a rollout. A step costs the same whatever the number of steps, so a few are
enough to compare the time of rollouts."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a setting."""

    words: str
    model: str
    layers: int
    width: int
    vocab: int
    batch: int
    prompt: int
    length: int
    steps: int
    """Denoising steps of the finished completions, from which states are scored."""
    block: int

    def small(self) -> Shape:
        """Return the shape of a model of the same kind, with a few completions of a few tokens."""
        return replace(self, layers=1, width=16, vocab=33, batch=4, prompt=4, length=16, steps=8, block=16)


SHAPES = {
    "a": Shape("tiny GPT-2", "gpt2", 2, 64, 33, 64, 18, 16, 8, 16),
    "b": Shape("Llama of 25M parameters", "llama", 8, 384, 8192, 4, 32, 64, 32, 32),
    "c": Shape("narrow Llama with the vocabulary of LLaDA", "llama", 2, 64, 126_464, 2, 32, 128, 16, 32),
}
"""Settings by name."""


class Setting:
    """A denoiser, and random completions with the steps that committed their tokens.

    Every completion has its whole length: the head's bias makes EOS and MASK impossible.
    """

    def __init__(self, shape: Shape) -> None:
        torch.manual_seed(0)
        self.shape = shape
        self.denoiser = denoiser_of(shape)
        generator = torch.Generator().manual_seed(1)
        rows = (shape.batch, shape.length)
        self.prompts = torch.randint(3, shape.vocab, (shape.batch, shape.prompt), generator=generator)
        self.prompt_mask = torch.ones_like(self.prompts, dtype=torch.bool)
        self.tokens = torch.randint(3, shape.vocab, rows, generator=generator)
        blocks = torch.arange(shape.length) // shape.block
        order = (torch.rand(rows, generator=generator) + blocks).argsort(-1).argsort(-1)
        self.unmask_step = order // (shape.length // shape.steps)
        self.entropy = torch.rand(rows, generator=generator)
        self.logprob = -torch.rand(rows, generator=generator)
        self.reward = torch.randn(shape.batch, generator=generator)
        self.group_size = min(4, shape.batch)

    @property
    def advantage(self) -> Tensor:
        """[B] rewards minus the mean of their group."""
        groups = self.reward.view(-1, self.group_size)
        return (groups - groups.mean(1, keepdim=True)).flatten()


def denoiser_of(shape: Shape) -> Denoiser:
    """Return a bidirectional model of random weights that never predicts EOS or MASK."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    length = shape.prompt + shape.length
    if shape.model == "gpt2":
        config = GPT2Config(
            vocab_size=shape.vocab, n_embd=shape.width, n_layer=shape.layers, n_head=4, n_positions=length,
            activation_function="gelu", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )  # fmt: skip
    else:
        config = LlamaConfig(
            vocab_size=shape.vocab, hidden_size=shape.width, intermediate_size=8 * shape.width // 3,
            num_hidden_layers=shape.layers, num_attention_heads=4, max_position_embeddings=length,
            tie_word_embeddings=False,
        )  # fmt: skip
    config.is_causal, config.use_cache, config.eos_token_id = False, False, EOS
    config.name_or_path = "LLaDA"
    model = GPT2LMHeadModel(config) if shape.model == "gpt2" else LlamaForCausalLM(config)
    head = nn.Linear(shape.width, shape.vocab)
    head.weight = model.lm_head.weight
    bias = torch.zeros(shape.vocab)
    bias[[MASK, EOS]] = -40.0
    head.bias = nn.Parameter(bias, requires_grad=False)
    model.lm_head = head
    return Denoiser(model, MASK, EOS, 0).eval()
