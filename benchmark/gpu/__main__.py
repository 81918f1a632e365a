"""Acceptance run: does what the tests show on CPUs hold on a GPU, at the size of LLaDA-8B?

    python -m benchmark.gpu                  # a quarter of an hour on one card of 80 GB
    python -m benchmark.gpu --tiny           # the same path at toy size, on any machine
    python -m benchmark.gpu --only rates,adapters --output /tmp/gpu.json

It needs no network: the weights are random and made on the card. Each check prints one line. The
results, with the name of the card and the versions, go to benchmark/results/gpu-CARD.json. The exit
code is 1 if a check fails.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmark.gpu import memory, numerics, rollouts, runs, step
from benchmark.gpu.bench import LARGE, TINY, Bench
from benchmark.gpu.harness import CHECKS, Report, about, run

ORDER = (
    numerics.rates,
    runs.every_method_and_order,
    runs.precision,
    rollouts.block_causal_rollout,
    numerics.fused_logprob,
    numerics.agreement_of_batches,
    rollouts.step_against_bare_forward,
    rollouts.cached_rollouts,
    rollouts.adapters,
    rollouts.merged_rollouts,
    memory.update_memory,
    rollouts.compilation,
    step.training_step,
    runs.qlora,
    runs.presets_on_one_process,
    runs.resume,
    runs.deterministic,
)
"""Checks in the order in which they run. The checks of the 8B model are next to each other, and
those up to `adapters` need it without adapters."""
RESULTS = Path(__file__).parents[1] / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks; return 1 if one fails, otherwise 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="run the same path at toy size")
    parser.add_argument("--only", default="", help="names of checks, comma-separated; default all")
    parser.add_argument("--budget", type=float, default=900.0, help="seconds; later checks are skipped")
    parser.add_argument("--output", type=Path, help="JSON file; default in benchmark/results, or none with --tiny")
    options = parser.parse_args(arguments)
    if not options.tiny and not torch.cuda.is_available():
        parser.error("there is no CUDA GPU. Use --tiny to run the same path at toy size.")
    names = options.only.split(",") if options.only else [function.__name__ for function in ORDER]
    if unknown := [name for name in names if name not in CHECKS]:
        parser.error(f"there is no check {', '.join(unknown)}. Checks: {', '.join(CHECKS)}.")
    facts = about()
    output = options.output
    if output is None and not options.tiny:
        output = RESULTS / f"gpu-{re.sub(r'[^a-z0-9]+', '-', facts['card'].lower()).strip('-')}.json"
    with tempfile.TemporaryDirectory() as folder:
        report = Report(output, facts)
        run(Bench(TINY if options.tiny else LARGE, Path(folder)), report, names, options.budget)
    print(f"{report.seconds:5.0f} s  {len(report.failed)} of {len(report.results)} checks failed", flush=True)
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
