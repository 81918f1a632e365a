"""Small native models for the tests of LoRA adapters, and adapter weights that differ from the initial ones."""

from __future__ import annotations

import torch
import transformers

from tests.helpers.native_configs import CONFIGS, EOS, MASK, PAD, TOKENIZER
from unmask.core.config import LoraConfig
from unmask.models import Denoiser
from unmask.models.adapters import Adapters
from unmask.models.native import NATIVE_CLASSES

IDS = torch.randint(3, len(TOKENIZER), (3, 9), generator=torch.Generator().manual_seed(0))
EVERYWHERE = torch.arange(9).expand(3, 9)
LORA = LoraConfig(r=3, alpha=6.0)


def build(name: str = "LlamaForCausalLM", dtype: torch.dtype = torch.float32) -> Denoiser:
    """Return a small native model with random weights that are large enough for its logits to depend on every input."""
    config = CONFIGS[name]()
    if NATIVE_CLASSES[name].auto_class == "AutoModelForCausalLM":
        config.is_causal = False
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = getattr(transformers, name)(config)
        with torch.no_grad():
            for parameter in backbone.parameters():
                if parameter.dim() > 1:
                    parameter.copy_(0.4 * torch.randn_like(parameter))
    return Denoiser(backbone.to(dtype).eval(), MASK, EOS, PAD)


@torch.no_grad()
def train_by_hand(adapters: Adapters, seed: int = 1) -> None:
    """Change the adapter weights as training would, so that B is no longer 0."""
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in adapters.parameters():
        parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
