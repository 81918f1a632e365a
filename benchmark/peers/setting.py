"""Settings of the comparison: a model, a batch of prompts, and finished completions."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from benchmark.gpu.bench import LARGE, new_tensors
from unmask.models import Denoiser

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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
    heads: int = 4
    intermediate: int | None = None
    """Width of the hidden layer of a Llama's MLP; None for 8/3 of `width`."""
    dtype: torch.dtype = torch.float32
    """Precision of the weights."""
    views_per_forward: int | None = None
    """This package's setting of this name, if it is not left at its default."""

    def small(self) -> Shape:
        """Return the shape of a model of the same kind, with a few completions of a few tokens.
        The prompt has a block's length: in place of a shorter one, AGRPO finds finished rows."""
        return replace(
            self, layers=1, width=16, vocab=33, batch=4, prompt=16, length=16, steps=8, block=16, heads=4, intermediate=None
        )  # fmt: skip


SHAPES = {
    "a": Shape("tiny GPT-2", "gpt2", 2, 64, 33, 64, 18, 16, 8, 16),
    "b": Shape("Llama of 25M parameters", "llama", 8, 384, 8192, 4, 32, 64, 32, 32),
    "c": Shape("narrow Llama with the vocabulary of LLaDA", "llama", 2, 64, 126_464, 2, 32, 128, 16, 32),
    "d": Shape(
        "Llama with the shape of LLaDA-8B",
        "llama",
        layers=LARGE.layers,
        width=LARGE.hidden,
        vocab=LARGE.vocabulary,
        batch=8,
        prompt=LARGE.prompt,
        length=LARGE.sampler["max_completion_length"],
        steps=LARGE.sampler["num_steps"],
        block=LARGE.sampler["block_length"],
        heads=LARGE.heads,
        intermediate=LARGE.intermediate,
        dtype=torch.bfloat16,
        views_per_forward=8,
    ),
}
"""Settings by name. In (d), the views of a forward pass are as many as in the recipes of LLaDA."""
GPU_ONLY = "d"
"""Setting whose rollouts take hours on a CPU."""


class Setting:
    """A denoiser, and random completions with the steps that committed their tokens.

    Every completion has its whole length: the head's bias makes EOS and MASK impossible.

    Args:
        shape: sizes.
        device: device of the model and of all tensors.
    """

    def __init__(self, shape: Shape, device: torch.device | str = "cpu") -> None:
        torch.manual_seed(0)
        self.shape, self.device = shape, torch.device(device)
        backbone = backbone_of(shape, self.device)
        # The denoiser gives its backbone a head with float32 logits. The releases keep the one that
        # transformers makes, whose logits have the precision of the weights.
        self.released: PreTrainedModel = copy.copy(backbone)
        """The model as the releases call it, with the weights of the denoiser."""
        self.released._modules = dict(backbone._modules)
        self.denoiser = Denoiser(backbone, MASK, EOS, 0).eval()
        self.released.eval()
        generator = torch.Generator().manual_seed(1)
        rows = (shape.batch, shape.length)
        self.prompts = torch.randint(3, shape.vocab, (shape.batch, shape.prompt), generator=generator).to(device)
        self.prompt_mask = torch.ones_like(self.prompts, dtype=torch.bool)
        self.tokens = torch.randint(3, shape.vocab, rows, generator=generator).to(device)
        blocks = torch.arange(shape.length) // shape.block
        order = (torch.rand(rows, generator=generator) + blocks).argsort(-1).argsort(-1)
        self.unmask_step = (order // (shape.length // shape.steps)).to(device)
        self.entropy = torch.rand(rows, generator=generator).to(device)
        self.logprob = -torch.rand(rows, generator=generator).to(device)
        self.reward = torch.randn(shape.batch, generator=generator).to(device)
        self.group_size = min(4, shape.batch)

    @property
    def advantage(self) -> Tensor:
        """[B] rewards minus the mean of their group."""
        groups = self.reward.view(-1, self.group_size)
        return (groups - groups.mean(1, keepdim=True)).flatten()


def backbone_of(shape: Shape, device: torch.device) -> PreTrainedModel:
    """Return a bidirectional model of random weights that never predicts EOS or MASK."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    length = shape.prompt + shape.length
    config: GPT2Config | LlamaConfig
    if shape.model == "gpt2":
        config = GPT2Config(
            vocab_size=shape.vocab, n_embd=shape.width, n_layer=shape.layers, n_head=shape.heads, n_positions=length,
            activation_function="gelu", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )  # fmt: skip
    else:
        config = LlamaConfig(
            vocab_size=shape.vocab, hidden_size=shape.width,
            intermediate_size=shape.intermediate or 8 * shape.width // 3, num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads, max_position_embeddings=length, tie_word_embeddings=False,
        )  # fmt: skip
    config.is_causal, config.use_cache, config.eos_token_id = False, False, EOS
    config.name_or_path = "LLaDA"
    with new_tensors(device, shape.dtype):
        model = GPT2LMHeadModel(config) if shape.model == "gpt2" else LlamaForCausalLM(config)
        bias = torch.zeros(shape.vocab)
        bias[[MASK, EOS]] = -40.0
    model.lm_head.bias = nn.Parameter(bias, requires_grad=False)
    return model
