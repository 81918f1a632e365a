"""Recorded answers in the schema that SGLang documents for `/generate`, written from a trajectory without the package's own
reader or writer of the format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unmask.core.records import Trajectory


def exchanges(path: Trajectory, rewards: list[float] | None = None, *, logprobs: bool = False) -> list[dict[str, Any]]:
    """Return one object with request and response for each row; every block that has a token of the policy is whole."""
    sampler, per_block = path.sampler, path.sampler.steps_per_block
    params = {
        "temperature": sampler.temperature,
        "top_k": sampler.top_k or -1,
        "top_p": sampler.top_p,
        "max_new_tokens": sampler.max_completion_length,
    }
    lines = []
    for row in range(len(path)):
        prompt = path.prompt_ids[row][path.prompt_mask[row]].tolist()
        steps = [int(step) for step in path.unmask_step[row]]
        last = max(i for i, step in enumerate(steps) if step < sampler.steps)
        end = (last // sampler.block + 1) * sampler.block
        tokens = path.tokens[row, :end].tolist()
        is_over = path.eos_id in tokens
        blocks = [steps[start : start + sampler.block] for start in range(0, end, sampler.block)]
        firsts = [min(block) if sampler.is_adaptive else i * per_block for i, block in enumerate(blocks)]
        step_maps = [
            0 if step == sampler.steps else step - first + 1
            for first, block in zip(firsts, blocks, strict=True)
            for step in block
        ]
        meta = {
            "id": f"{row:032x}",
            "finish_reason": {"type": "stop", "matched": path.eos_id} if is_over else {"type": "length", "length": end},
            "prompt_tokens": len(prompt),
            "weight_version": "default",
            "completion_tokens": end,
            "cached_tokens": 0,
            "e2e_latency": 0.1,
            "step_maps": step_maps,
        }
        if logprobs:
            values = path.logprob[row, :end].tolist()
            meta["output_token_logprobs"] = [[value, token, None] for value, token in zip(values, tokens, strict=True)]
        line = {
            "request": {"input_ids": prompt, "sampling_params": dict(params), "return_step_maps": True},
            "response": {"text": "", "output_ids": tokens, "meta_info": meta},
        }
        lines.append(line if rewards is None else line | {"reward": rewards[row]})
    return lines


def write_lines(file: Path, lines: list[dict[str, Any]]) -> Path:
    """Write the objects to a file, one a line."""
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file
