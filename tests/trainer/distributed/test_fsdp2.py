"""Two ranks under accelerate's own FSDP2 path: what is gathered together, where gradients are kept,
and rollouts on whole weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmark.cpu_ranks import fsdp2_on_the_cpu
from tests.helpers.adapters import EVERYWHERE, IDS, LORA, build, train_by_hand
from tests.helpers.processes import exit_codes_of_two
from tests.helpers.runs import train_recipe
from unmask.models import Denoiser, char_tokenizer
from unmask.models.adapters import Adapters
from unmask.models.experts import freeze_routers
from unmask.models.native import NATIVE_CLASSES
from unmask.trainer.distributed import backend
from unmask.trainer.distributed.ranks import Ranks
from unmask.trainer.distributed.shards import holder_of, prepare
from unmask.trainer.policy import TrainedPolicy
from unmask.trainer.rollout_weights import RolloutWeights

MODELS = ("Qwen2ForCausalLM", "Qwen3MoeForCausalLM")
"""Classes whose heads do not share their weights with the embeddings: a dense one, and a mixture."""


def backpropagate(accelerator: Any, denoiser: nn.Module, rows: slice, *, is_last: bool) -> None:
    loss = denoiser(IDS[rows], None, EVERYWHERE[rows]).float().logsumexp(-1).sum()
    backend.backward(accelerator, denoiser, loss, is_last)


def compare_with_one_rank(rank: int, folder: Path, model_class: str) -> None:
    """Check groups, gradients and whole weights on one of two ranks."""
    from accelerate import Accelerator
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    fsdp2_on_the_cpu(rank)
    accelerator, recipe = Accelerator(), train_recipe(folder, folder)
    for adapts in (False, True):
        denoiser, plain = build(model_class), build(model_class)
        for each in (denoiser, plain):
            each.requires_grad_()
            freeze_routers(each)
        adapters = [Adapters(each, LORA) if adapts else None for each in (denoiser, plain)]
        for each in filter(None, adapters):
            train_by_hand(each)
        optimizer = torch.optim.AdamW([p for p in denoiser.parameters() if p.requires_grad], lr=1e-3)
        policy = TrainedPolicy(denoiser, char_tokenizer("01"), adapters[0], None, [optimizer], {})
        weights = RolloutWeights(policy, recipe, accelerator)
        model, optimizers = prepare(accelerator, denoiser, [optimizer])

        # The embeddings and each layer are gathered alone, the head with what is left.
        grouped = {name for name, module in denoiser.named_modules() if isinstance(module, FSDPModule)}
        assert grouped == {"", "backbone.model.embed_tokens", "backbone.model.layers.0", "backbone.model.layers.1"}

        # A batch that is not the last leaves shards of the gradients.
        for rows, is_last in ((slice(0, 1), False), (slice(1, 3), True)):
            backpropagate(accelerator, model, rows, is_last=is_last)
            for name, parameter in denoiser.named_parameters():
                if parameter.requires_grad:
                    assert isinstance(parameter.grad, DTensor), name
                    assert parameter.grad.to_local().numel() <= parameter.numel() // 2 + parameter.shape[-1], name
        plain(IDS, None, EVERYWHERE).float().logsumexp(-1).sum().backward()
        for (name, parameter), expected in zip(denoiser.named_parameters(), plain.parameters(), strict=True):
            if parameter.requires_grad:
                torch.testing.assert_close(parameter.grad.full_tensor(), expected.grad, rtol=1e-4, atol=1e-4, msg=name)  # type: ignore[union-attr]

        # In a block of rollouts, ranks run different numbers of forward passes.
        with torch.no_grad(), weights.opened(holder_of(accelerator, model, optimizers), Ranks(accelerator)) as whole:
            for _ in range(1 + 3 * rank):
                logits = whole(IDS, None, EVERYWHERE)
        with torch.no_grad():
            torch.testing.assert_close(logits, plain(IDS, None, EVERYWHERE), rtol=1e-4, atol=1e-4)
        accelerator.wait_for_everyone()
        accelerator.free_memory()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.slow
def test_groups_gradients_and_whole_weights_of_two_ranks(name: str, tiny_model: Path) -> None:
    assert exit_codes_of_two(compare_with_one_rank, tiny_model, name, preset="fsdp2") == [0, 0]


@pytest.mark.parametrize("name", NATIVE_CLASSES)
def test_embeddings_that_share_their_weights_with_the_head_are_not_gathered_apart(name: str) -> None:
    denoiser = build(name)
    twice = len(list(denoiser.named_parameters(remove_duplicate=False))) - len(list(denoiser.parameters()))
    assert (denoiser.get_input_embeddings() is None) == (twice > 0)
    if not twice:
        assert denoiser.get_input_embeddings() is denoiser.backbone.get_input_embeddings()
    assert not hasattr(Denoiser, "get_output_embeddings")
