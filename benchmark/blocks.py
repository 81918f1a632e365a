"""Time that a rollout of a block-causal model saves by caching finished blocks.

    python -m benchmark.blocks --output benchmark/results/blocks.md

The same random Qwen3 with blocks of four denoises the same prompts twice: as the sampler does it,
and with everything computed again in every step. The tokens must be equal. The CPU seconds of one
thread are compared, as the minimum of three rounds each.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unmask.core.config import SamplerConfig
from unmask.core.records import Trajectory
from unmask.models import Denoiser
from unmask.sampling import denoise

MASK, EOS, PAD, VOCABULARY = 511, -1, 509, 512
"""EOS is not a token, so that all rows stay until the end."""

ROWS, BLOCK, ROUNDS = 8, 4, 3


class RunAgain(nn.Module):
    """The same model without the declaration that it is block-causal, so that nothing is cached."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser, self.mask_id, self.eos_id = denoiser, denoiser.mask_id, denoiser.eos_id

    def forward(self, ids: Tensor, attention_mask: Tensor | None, positions: Tensor, **options: Any) -> Tensor:
        return self.denoiser(ids, attention_mask, positions, **options)


def model(block_length: int = BLOCK) -> Denoiser:
    """Return a random block-causal Qwen3."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=2048,
        is_causal=False,
        block_length=block_length,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Denoiser(Qwen3ForCausalLM(config), MASK, EOS, PAD).eval()


def compare(denoiser: Denoiser, prompt_length: int, length: int) -> list[str]:
    """Return a row of the table; raise if the two results differ."""
    prompt = torch.randint(0, 500, (ROWS, prompt_length), generator=torch.Generator().manual_seed(1))
    sampler = SamplerConfig(max_completion_length=length, num_steps=length // 2, block_length=BLOCK)

    def run(subject: Any) -> tuple[float, Trajectory]:
        started = time.process_time()
        path = denoise(subject, prompt, torch.ones_like(prompt, dtype=torch.bool), sampler, torch.arange(ROWS))
        return time.process_time() - started, path

    rounds = [(run(denoiser), run(RunAgain(denoiser))) for _ in range(ROUNDS)]
    kept, again = (min(pair[i][0] for pair in rounds) for i in (0, 1))
    one, two = (rounds[0][i][1] for i in (0, 1))
    assert torch.equal(one.tokens, two.tokens)
    assert torch.equal(one.unmask_step, two.unmask_step)
    difference = float((one.logprob - two.logprob).abs().max())
    sizes = [str(prompt_length), str(length), str(sampler.steps)]
    return [*sizes, f"{kept:.2f}", f"{again:.2f}", f"{again / kept:.1f}", f"{difference:.0e}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="file for the table, in addition to the terminal")
    output = parser.parse_args().output
    torch.set_num_threads(1)
    denoiser = model()
    columns = ["prompt", "completion", "steps", "kept, s", "run again, s", "ratio", "largest difference of log p"]
    rows = [compare(denoiser, prompt, length) for prompt, length in ((32, 32), (64, 64), (128, 128))]
    table = "\n".join(f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *rows))
    print(table)
    if output is not None:
        output.write_text(f"# Finished blocks kept, against run again\n\n`python -m benchmark.blocks`\n\n{table}\n")


if __name__ == "__main__":
    main()
