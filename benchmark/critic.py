"""How well the values of a state predict the return: the critic, the one-step value and the group.

    python -m benchmark.critic                    # about 40 s a seed on an idle core
    python -m benchmark.critic --table

The tiny Sudoku base of each seed completes the prompts of 60 training steps, without updates. Each
state of a path gets the value of the critic, which has learned the returns of the earlier training
steps, and the reward of its one-step completion, which needs no learning. The explained variance
1 - Var(R - V) / Var(R) is that of the last 40 training steps together, by denoising step. It is also
the share of the variance of the advantage that the baseline removes. Results go to
benchmark/results/critic.jsonl, one line for each seed; an existing seed does not run again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from unmask.functional.completions import mean_of_others
from unmask.functional.intervals import mean_interval
from unmask.models import Policy, load_model
from unmask.recipes.load import load, load_recipe
from unmask.recipes.schema import PretrainRecipe
from unmask.recipes.scorer import scorer_of
from unmask.sampling.engine import BatchLimits, LocalEngine
from unmask.trainer.collect import Collector, prompts_of_step
from unmask.trainer.critic import Critic, blank_moments
from unmask.trainer.distributed.ranks import Ranks
from unmask.trainer.metrics import Tally
from unmask.trainer.passes import UpdatePasses
from unmask.trainer.pretrain import pretrain

RESULTS = Path(__file__).parent / "results" / "critic.jsonl"
WORK = Path("runs/benchmark/critic")
RECIPE, BASE = "sudoku-tiny", "sudoku-tiny-base"
SEEDS, STEPS, LEARNING = 3, 60, 20
SETTINGS = ("method={type: direct_advantage}", "reward_workers=0")
"""Direct advantage needs the one-step completions of all states."""
NAMES = {
    "critic": "critic",
    "one_step": "one-step value",
    "one_step_scaled": "one-step value, best coefficient",
    "group": "mean of the other completions of the group",
}


def base_of(seed: int) -> Path:
    """Return the base model of a seed, which is made if it is missing."""
    folder = WORK / f"base-{seed}"
    if not (folder / "final").is_dir():
        pretrain(load(PretrainRecipe, BASE, [f"output_dir={folder}", f"seed={seed}"]))
    return folder / "final"


def run_seed(seed: int) -> dict[str, Any]:
    """Return the explained variances of a seed, by kind of value and denoising step."""
    base = base_of(seed)
    recipe = load_recipe(RECIPE, [f"model={base}", f"seed={seed}", *SETTINGS])
    denoiser, tokenizer = load_model(base)
    scorer = scorer_of(recipe, (), lambda: None)
    collector = Collector(LocalEngine(Policy(denoiser, tokenizer), BatchLimits(256, None)), scorer, recipe)
    by_critic = recipe.model_copy(update={"method": recipe.method.model_copy(update={"value": "critic"})})
    critic = Critic(
        denoiser, blank_moments(denoiser, "cpu"), by_critic, UpdatePasses(recipe), Ranks(Accelerator(cpu=True))
    )
    rows = recipe.task.rows("train", recipe.num_rows, recipe.seed)
    values: dict[str, list[Tensor]] = {name: [] for name in (*NAMES, "reward")}
    for step in range(STEPS):
        prompts = prompts_of_step(rows, step, recipe.num_prompts, recipe.seed)
        valued = critic.valued(collector.collect(prompts, step, slice(None), Tally()))
        critic.learn(valued, [], Tally())
        rollout = valued.rollout
        assert rollout.value is not None
        assert rollout.one_step_reward is not None
        if step >= LEARNING:
            group = torch.arange(len(rollout.reward)) // rollout.group_size
            values["critic"].append(rollout.value)
            values["one_step"].append(rollout.one_step_reward)
            values["group"].append(mean_of_others(rollout.reward, group).unsqueeze(-1).expand_as(rollout.value))
            values["reward"].append(rollout.reward.unsqueeze(-1).expand_as(rollout.value))
    joined = {name: torch.cat(parts).double() for name, parts in values.items() if parts}
    joined["one_step_scaled"] = _scaled(joined["one_step"], joined["reward"])
    explained = {name: _explained(joined[name], joined["reward"]) for name in NAMES}
    return {"seed": seed, "reward": round(float(joined["reward"].mean()), 4), **explained}


def _scaled(value: Tensor, reward: Tensor) -> Tensor:
    """Return [B, T] values times the coefficient that fits the rewards of each column best, as a
    control variate of fitted gain has it."""
    centred = value - value.mean(0)
    gain = (centred * (reward - reward.mean(0))).mean(0) / centred.square().mean(0).clamp(min=1e-12)
    return gain * value


def _explained(value: Tensor, reward: Tensor) -> list[float]:
    """Return the explained variance of the rewards in each column."""
    explained = 1 - (reward - value).var(0) / reward.var(0)
    return [round(float(each), 4) for each in explained]


def read() -> list[dict[str, Any]]:
    """Return the lines of the results."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def table(results: list[dict[str, Any]]) -> str:
    """Return the means over seeds ± half the width of the 95 % t interval, for each value and for the
    difference of each to the critic, paired by seed."""
    num_steps = len(results[0]["critic"])
    shown = sorted({0, num_steps // 2, num_steps - 2, num_steps - 1})
    lines = [
        f"| value of a state | {' | '.join(f'k = {k}' for k in shown)} | mean over steps |",
        "|---" * (len(shown) + 2) + "|",
    ]
    rows = {words: [result[name] for result in results] for name, words in NAMES.items()}
    for name, words in list(NAMES.items())[1:]:
        pairs = [zip(result[name], result["critic"], strict=True) for result in results]
        rows[f"{words}, less the critic"] = [[other - critic for other, critic in pair] for pair in pairs]
    for words, by_seed in rows.items():
        cells = [[values[k] for values in by_seed] for k in shown] + [[sum(v) / len(v) for v in by_seed]]
        lines.append(f"| {words} | {' | '.join(_cell(numbers) for numbers in cells)} |")
    return "\n".join(lines)


def _cell(numbers: list[float]) -> str:
    mean, half = mean_interval(numbers)
    return f"{mean:.2f} ± {half:.2f}".replace("-", "−")


def main() -> None:
    """Run the missing seeds, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="number of seeds")
    parser.add_argument("--table", action="store_true", help="print the table of the results")
    arguments = parser.parse_args()
    if not arguments.table:
        for seed in sorted(set(range(arguments.seeds)) - {result["seed"] for result in read()}):
            line = json.dumps(run_seed(seed))
            with RESULTS.open("a") as file:
                file.write(line + "\n")
            print(line, flush=True)
    print(table(read()))


if __name__ == "__main__":
    main()
