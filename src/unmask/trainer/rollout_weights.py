"""The weights that rollouts and evaluations read. During a block of rollouts each rank holds the
whole weights, with the adapters merged into them.

A rollout runs the same weights hundreds of times. If the shards of the weights are gathered once
for all forward passes of a block, a forward pass is no collective: ranks may run different numbers
of them, and completions that end early cost nothing. If the adapters are merged once, a forward
pass costs what it costs without adapters.

The whole weights are put into a copy of the model's modules, and are dropped after the block.
Weights that no adapter changes and that are not sharded are shared with the model. The weights that
training reads are never written, so they are the same bits afterwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor, nn

from unmask.models import Denoiser
from unmask.models.adapters import remove_layers
from unmask.models.device import weights_dtype
from unmask.models.shell import filled, without_weights
from unmask.recipes.schema import TrainRecipe
from unmask.trainer.distributed.backend import is_sharded
from unmask.trainer.distributed.ranks import Ranks
from unmask.trainer.distributed.shards import Holder
from unmask.trainer.policy import TrainedPolicy

if TYPE_CHECKING:
    from accelerate import Accelerator


class RolloutWeights:
    """Provides the denoiser that rollouts and evaluations sample from; see
    `TrainRecipe.rollout_weights`.

    Args:
        policy: the policy, before accelerate wraps it.
        recipe: settings of the run.
        accelerator: accelerator of the run.
    """

    def __init__(self, policy: TrainedPolicy, recipe: TrainRecipe, accelerator: Accelerator) -> None:
        self.denoiser, self.dtype = policy.denoiser, weights_dtype(accelerator.device, recipe.precision)
        # Adapters cannot be added to quantized weights without a loss.
        is_quantized = getattr(policy.denoiser.backbone, "is_quantized", False)
        self.adapters = policy.adapters if recipe.rollout_weights == "merged" and not is_quantized else None
        self.is_gathered = is_sharded(accelerator) and recipe.rollout_weights != "sharded" and not is_quantized
        self._shell: Denoiser | None = None
        if self.adapters or self.is_gathered:
            self._shell = without_weights(policy.denoiser)
            if self.adapters:
                remove_layers(self._shell)
            if recipe.compile:
                self._shell.compile_layers()

    def modules(self) -> list[Denoiser]:
        """Return the copy of the model that rollouts run; empty if they run the model itself."""
        return [self._shell] if self._shell is not None else []

    @contextmanager
    def opened(self, holder: Holder, ranks: Ranks) -> Iterator[Denoiser]:
        """Open a block of rollouts, and provide the denoiser to sample from. All ranks enter it
        together; if the weights stay sharded, all ranks leave it together, too.

        Args:
            holder: access to the weights of the prepared model.
            ranks: ranks of the run.
        """
        if self._shell is None:
            with ranks.lockstep(self.denoiser):
                yield self.denoiser
            return
        with filled(self._shell, dict(self._tensors(holder))) as denoiser:
            yield denoiser

    def _tensors(self, holder: Holder) -> Iterator[tuple[str, Tensor]]:
        """Yield the parameters and buffers of the whole model by name."""
        parameters = dict(self.denoiser.named_parameters(remove_duplicate=False))
        count = Counter(map(id, parameters.values()))
        shared: dict[int, Tensor] = {}

        def whole(tensor: Tensor) -> Tensor:
            assert isinstance(tensor, nn.Parameter)
            if not self.is_gathered:
                return tensor.detach()
            if id(tensor) in shared:
                return shared[id(tensor)]
            # The shards of trained weights are float32, whatever the precision of a forward pass.
            gathered = holder.weight(tensor).to(self.dtype if tensor.requires_grad else tensor.dtype)
            if count[id(tensor)] > 1:
                # The head may be the matrix of the embeddings, which is gathered once. All others
                # are not kept here, because a merged weight replaces them.
                shared[id(tensor)] = gathered
            return gathered

        if self.adapters is None:
            yield from ((name, whole(parameter)) for name, parameter in parameters.items())
        else:
            own = {name.removeprefix("backbone."): parameter for name, parameter in parameters.items()}
            merged = self.adapters.merging(own, whole)
            yield from ((f"backbone.{name}", tensor) for name, tensor in merged)
        yield from self.denoiser.named_buffers(remove_duplicate=False)
