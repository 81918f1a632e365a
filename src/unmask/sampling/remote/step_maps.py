"""Step maps, which say for each output token the denoising step that committed it, and the paths of
completions that they describe.

SGLang counts the steps of each block of its own from 1, and other engines count the steps of the
whole completion. A map whose blocks all begin with step 1 is of the first kind. In both kinds, the
steps of a block follow each other without a gap, because a step commits at least one token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from unmask.sampling.remote.format import FormatError, quoted

FILLED = 0
"""Entry of a step map for a token that was filled in after the end of the completion."""


def steps_in_blocks(step_map: Sequence[Any], num_tokens: int, block: int) -> list[int]:
    """Return the step of each token within its block, counted from 0; -1 for a filled token.

    Args:
        step_map: step of each output token, as an engine returned it.
        num_tokens: number of output tokens.
        block: number of positions in a block.

    Raises:
        FormatError: the map has another length, is not a map of whole blocks, has a position with
            several steps, or contradicts the order of the blocks.

    Example:
        >>> steps_in_blocks([1, 2, 2, 1], 4, block=2), steps_in_blocks([1, 2, 3, 3], 4, block=2)
        ([0, 1, 1, 0], [0, 1, 0, 0])
    """
    if len(step_map) != num_tokens:
        raise FormatError(f"the step map has {len(step_map)} entries for {num_tokens} output tokens.")
    if num_tokens % block:
        raise FormatError(
            f"the {num_tokens} output tokens end in the middle of a block of {block}. What the policy saw in this block is not "
            "known, so its probabilities cannot be computed. Use an engine that returns the whole last block."
        )
    for position, step in enumerate(step_map):
        if isinstance(step, list):
            raise FormatError(
                f"position {position} has the steps {quoted(step)}: it was edited after it had been committed. Such a path has "
                "no probability as a masked diffusion rollout. Switch token editing off in the engine."
            )
        if not isinstance(step, int) or isinstance(step, bool) or step < FILLED:
            raise FormatError(f"the step of position {position} is {quoted(step)}. Steps are whole numbers from 1.")
    blocks = [list(step_map[start : start + block]) for start in range(0, num_tokens, block)]
    before = [0] * len(blocks)
    if any(_taken(own) and min(_taken(own)) > 1 for own in blocks):
        before = _steps_before(blocks)
    for index, (own, done) in enumerate(zip(blocks, before, strict=True)):
        _check_block(own, index, done)
    return [step - done - 1 if step else -1 for own, done in zip(blocks, before, strict=True) for step in own]


def _taken(block: list[int]) -> list[int]:
    """Return the steps of a block without those of filled tokens."""
    return [step for step in block if step != FILLED]


def _steps_before(blocks: list[list[int]]) -> list[int]:
    """Return the number of steps before each block, for a map that counts through the whole
    completion."""
    before, done = [], 0
    for index, block in enumerate(blocks):
        if _taken(block) and min(_taken(block)) <= done:
            raise FormatError(
                f"block {index} has the step {min(_taken(block))}, but the blocks before it took {done} steps. The step map "
                "contradicts the order of the blocks: check the block length."
            )
        before.append(done)
        done = max([done, *_taken(block)])
    return before


def _check_block(block: list[int], index: int, done: int) -> None:
    """Check that the steps of a block follow each other without a gap."""
    taken = {step - done for step in _taken(block)}
    if taken != set(range(1, len(taken) + 1)):
        raise FormatError(
            f"block {index} has the steps {quoted(sorted(step + done for step in taken))}, but the steps of a block follow each "
            "other without a gap. The step map is incomplete, or the block length is another."
        )
