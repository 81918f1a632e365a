"""The programs of benchmark/ run at tiny size. What they measure is not looked at: timing belongs in no test."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmark import (
    adaptive,
    cached,
    critic,
    lift,
    long_answers,
    memory,
    merging,
    packed_views,
    refill,
    report,
    results,
    roofline,
    speed,
    trained_models,
)
from benchmark.gpu.__main__ import ORDER
from benchmark.gpu.__main__ import main as accept
from benchmark.gpu.harness import CHECKS, Check
from benchmark.peers import __main__ as peers
from benchmark.peers.ours import Ours
from benchmark.peers.phases import SIDES
from benchmark.peers.releases import RELEASES
from benchmark.peers.results import FAILED, OUT_OF_MEMORY, Results
from benchmark.peers.setting import SHAPES, Setting
from benchmark.peers.source import functions_of
from tests.helpers.comparisons import small
from tests.helpers.messages import raises
from tests.helpers.simulated_cuda import DEVICE
from unmask.core.config import SamplerConfig
from unmask.core.errors import RunError
from unmask.models import TinyConfig, save_model, tiny_denoiser, word_tokenizer
from unmask.recipes.load import load, load_recipe
from unmask.recipes.schema import PretrainRecipe
from unmask.trainer.comparison.run import compare


@pytest.mark.slow
def test_the_speed_table_has_every_row(capsys: pytest.CaptureFixture[str]) -> None:
    speed.main(["--batch=4", "--selected=2", "--steps=4", "--length=8", "--repeats=1", "--width=16", "--layers=1"])
    table = capsys.readouterr().out
    for row in ("| rollout |", "| old or reference pass |", "| update |", "| whole RL step |", "| peak memory"):
        assert row in table


CHECKOUT = """
import a_library_that_is_not_installed

class Trainer(a_library_that_is_not_installed.Trainer):
    @profiling_decorator
    def compute_loss(self, model, inputs):
        print("not shown")
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        self._metrics["train"]["loss"].append(1.0)
        return self.get_logits(model, ids).logsumexp(-1).mean()

    def generate(self, model, prompt, steps, gen_length, block_length, temperature, mask_id):
        return self.get_logits(model, F.pad(prompt, (0, gen_length), value=mask_id)).argmax(-1)

    def get_logits(self, model, ids):
        return model(ids).logits

    def _get_per_token_logps(self, model, ids, length, seeds):
        set_seed(seeds[0])
        return selective_log_softmax(self.get_logits(model, ids[0]), ids[0])

    def add_gumbel_noise(self): ...
    def forward_process(self): ...
    def get_num_transfer_tokens(self): ...
"""
"""File of a release, which imports what is not there."""


@pytest.mark.slow
def test_the_functions_of_a_release_run_without_the_rest_of_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "d1" / "diffu-grpo" / "diffu_grpo_trainer.py"
    file.parent.mkdir(parents=True)
    file.write_text(CHECKOUT)
    output = tmp_path / "records.jsonl"
    options = [f"--checkouts={tmp_path}", "--settings=a", "--releases=d1,ESPO", f"--output={output}"]
    peers.main([*options, "--rounds=2", "--phases=rollout,scoring", "--memory="])
    peers.main([*options, "--rounds=1", "--phases=update", "--memory=update"])
    table = capsys.readouterr().out
    assert "not shown" not in table
    assert "| ESPO | not measured: no checkout |" in table
    assert "`d1/diffu-grpo/diffu_grpo_trainer.py`" in table
    (record,) = Results(output).records.values()
    assert {phase: [len(seconds[side]) for side in SIDES] for phase, seconds in record["seconds"].items()} == {
        "rollout": [2, 2],
        "scoring": [2, 2],
        "update": [1, 1],
    }
    weights = sum(p.numel() for p in Setting(SHAPES["a"]).denoiser.parameters() if p.requires_grad) * 4 / 2**20
    for of_process, of_tensors in record["peaks"]["update"].values():
        # A later update holds gradients and makes no state of the optimizer; the process holds both.
        assert weights < of_tensors < of_process
        assert of_process > 3 * weights
    with pytest.raises(LookupError, match="no function or class missing"):
        functions_of([(file, ("generate", "missing"))])


def test_the_table_of_peers_divides_the_release_by_this_package() -> None:
    results = Results(None)
    for release in ("d1", "AGRPO"):
        results.add(release, "a", "seconds", "rollout", {"theirs": [2.0, 9.0, 4.0], "ours": [1.0, 3.0, 1.0]})
        results.add(release, "a", "seconds", "scoring", {"theirs": [8.0], "ours": [1.0]})
        results.add(release, "a", "seconds", "update", {"theirs": [1.0], "ours": [2.0]})
        results.add(release, "a", "peaks", "update", {"theirs": (30.0, 6.0)})
        results.add(release, "a", "peaks", "update", {"ours": (20.0, 8.0)})
    d1, agrpo = results.table([])[2:]
    times = "3.00 (2.00-4.00; 2.00) | 8.00 (8.00-8.00; 8.00) | 0.50 (0.50-0.50; 0.50)"
    memory = "1.50 (30/20) |  | 0.75 (6/8) |"
    assert d1 == f"| d1 | a | {times} | {13 / 4:.2f} |  | {memory}"
    assert agrpo == f"| AGRPO | a | {times} | {5 / 3:.2f} |  | {memory}", "a step of AGRPO scores nothing"
    (at_a,) = results.summary()[2:]
    alike = "3.00 to 3.00 | 8.00 to 8.00 | 0.50 to 0.50"
    assert at_a == f"| a | {alike} | {5 / 3:.2f} to {13 / 4:.2f} |  | 1.50 to 1.50 |  | 0.75 to 0.75 |"


@pytest.mark.slow
def test_peers_on_a_gpu_record_a_side_that_fails_and_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SHAPES, "d", SHAPES["d"].small())
    file = tmp_path / "d1" / "diffu-grpo" / "diffu_grpo_trainer.py"
    file.parent.mkdir(parents=True)
    without_memory = CHECKOUT.replace("set_seed(seeds[0])", "raise torch.OutOfMemoryError('full')")
    file.write_text(without_memory.replace("generate(self, ", "generate(self, an_argument_too_many, "))
    output = tmp_path / "records.jsonl"
    options = [f"--checkouts={tmp_path}", "--releases=d1", f"--device={DEVICE}", "--rounds=2", f"--output={output}"]
    peers.main(options)
    table, errors = capsys.readouterr()
    assert "d1 d: rollout, theirs failed" in errors
    assert "an_argument_too_many" in errors
    record = Results(output).records["d1", "d"]
    assert record["seconds"]["rollout"]["theirs"] == FAILED
    assert len(record["seconds"]["rollout"]["ours"]) == 2
    assert set(record["about"]) >= {"card", "commit", "versions"}
    assert record["seconds"]["scoring"]["theirs"] == OUT_OF_MEMORY
    assert len(record["seconds"]["scoring"]["ours"]) == 2
    assert record["peaks"]["update"]["theirs"] == OUT_OF_MEMORY
    assert "| d1 | d | failed: theirs | out of memory: theirs | out of memory: theirs |" in table
    file.write_text(CHECKOUT)
    peers.main([*options, "--phases=rollout,scoring"])
    record = Results(output).records["d1", "d"]
    assert all(len(record["seconds"][phase][side]) == 2 for phase in ("rollout", "scoring") for side in SIDES)
    assert all(of_tensors > 0 for _, of_tensors in record["peaks"]["rollout"].values())


def test_the_8b_setting_needs_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        peers.main([f"--checkouts={tmp_path}", "--settings=a,d"])
    assert "use --device cuda" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        peers.main([f"--checkouts={tmp_path}", f"--device={DEVICE}", "--memory=rollout"])
    assert "--memory and --jobs are for a CPU" in capsys.readouterr().err


def test_releases_run_with_a_head_of_the_precision_of_the_weights() -> None:
    setting = Setting(SHAPES["d"].small())
    logits = setting.released(setting.prompts).logits
    assert logits.dtype == torch.bfloat16
    ours = setting.denoiser.backbone(setting.prompts).logits
    assert ours.dtype == torch.float32
    torch.testing.assert_close(logits.float(), ours, rtol=1e-2, atol=1e-2)
    assert setting.released.lm_head.weight is setting.denoiser.backbone.lm_head.weight


@pytest.mark.slow
@pytest.mark.parametrize("release", sorted(RELEASES))
def test_our_side_of_the_comparison_updates_the_model(release: str) -> None:
    setting = Setting(SHAPES["a"])
    ours = Ours(release, setting)
    assert ours.rollout().tokens.shape == setting.tokens.shape
    before = [parameter.detach().clone() for parameter in setting.denoiser.parameters() if parameter.requires_grad]
    ours.prepare()
    ours.prepare_update()
    ours.update()
    after = [parameter for parameter in setting.denoiser.parameters() if parameter.requires_grad]
    assert any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.slow
def test_the_memory_table_adds_up(capsys: pytest.CaptureFixture[str]) -> None:
    memory.main(["--width=16", "--layers=2", "--vocab=600", "--length=8", "--views=2", "--r=64", "--parts=4"])
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 7
    cells = {name.strip(): [float(cell) for cell in numbers[:5]] for name, *numbers in rows}
    for *parts, together in cells.values():
        assert together == pytest.approx(sum(parts), abs=0.25)
    assert cells["lora.r=64"][3] == 0.0 < cells["all weights"][3], "adapters need no copy for a reference"
    assert cells["lora.r=64, precision=bf16"][1] == cells["lora.r=64"][1] > 0.1, "the state is that of float32 masters"


@pytest.mark.slow
def test_the_merging_table_shows_that_random_rounding_keeps_small_updates(capsys: pytest.CaptureFixture[str]) -> None:
    merging.main(["--width=64", "--layers=1", "--vocab=100", "--rank=2", "--rows=1", "--repeats=1"])
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| 1e-06")]
    kept = {rule.strip(): float(share) for _, rule, share, *_ in rows}
    assert kept["to nearest"] < 0.2 < 0.7 < kept["at random"] < 1.3


@pytest.mark.slow
def test_the_acceptance_run_of_a_gpu_passes_at_toy_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "gpu.json"
    assert accept(["--tiny", "--output", str(output)]) == 0
    checks = json.loads(output.read_text())["checks"]
    assert list(checks) == [function.__name__ for function in ORDER]
    skipped = {name for name, result in checks.items() if result["result"] == "skipped"}
    assert skipped == {"update_memory", "qlora"}, "they need a GPU"
    assert checks["cached_rollouts"]["dual"]["token passes a completion"] == 120
    assert capsys.readouterr().out.count("\n") > len(checks)
    # Negative control: a check that raises or fails is reported, and the exit code says so.
    monkeypatch.setitem(CHECKS, "rates", Check(lambda bench: 1 / 0, 0.0))
    assert accept(["--tiny", "--only", "rates", "--output", str(output)]) == 1
    again = json.loads(output.read_text())["checks"]
    assert "ZeroDivisionError" in again.pop("rates")["error"]
    assert again == {name: result for name, result in checks.items() if name != "rates"}, "the others stay"


def test_a_rise_is_paired_by_seed() -> None:
    # Bases of .1 and .5 and a rise of .2 each: the means are uncertain, the rise is not.
    results = [
        {"greedy base": b, "greedy trained": b + 0.2, "sampled base": b, "sampled trained": b + 0.2} for b in (0.1, 0.5)
    ]
    *means, greedy, sampled = lift.summary(results)
    assert means == ["0.300 (0.000 to 1.000)", "0.500 (0.000 to 1.000)"] * 2
    assert greedy == sampled == "+0.200 ± 0.000"


def test_the_rises_of_the_comparison_are_those_of_its_seeds() -> None:
    found = lift.compared("sudoku", "EGSPO-CA all 32x1")
    assert sorted(r["seed"] for r in found) == list(range(5))
    assert found != lift.compared("sudoku", "EGSPO-CA step 32x1")
    assert load_recipe(lift.RECIPE).model == f"{load(PretrainRecipe, lift.BASE).output_dir}/final"


@pytest.mark.slow
def test_the_tables_of_the_results_page_are_those_of_the_committed_results() -> None:
    text = results.PAGE.read_text(encoding="utf-8")
    assert results.page(text) == text, "run make results"
    # A number that is edited by hand is found.
    (block,) = (found[0] for found in results.BLOCK.finditer(text) if found[2] == "paper-tiny; methods")
    edited = re.sub(r"\d(?= ± )", lambda digit: str(9 - int(digit[0])), block, count=1)
    assert edited != block
    assert results.page(edited) == block
    assert {name for name in results.comparisons() if f"<!-- table: {name};" in text} == set(results.comparisons())


def test_the_speed_of_cached_rollouts_is_measured_with_their_token_passes() -> None:
    sampler = SamplerConfig(max_completion_length=8, num_steps=8, block_length=4)
    rows = cached.speed(cached.tiny_model(), 5, 2, sampler, rounds=1)
    assert [row[:2] for row in rows] == [["off", "104"], ["prefix", "62"], ["dual", "50"]]


def test_the_table_of_cached_rollouts_pairs_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached, "RESULTS", tmp_path / "results.jsonl")
    names = ("greedy", "sampled", "greedy cached", "sampled cached", "token_passes", "cpu_seconds")
    accuracy = {("off", 0): 0.1, ("off", 1): 0.5, ("dual", 0): 0.3, ("dual", 1): 0.7, ("dual", 2): 0.9}
    lines = [{"variant": v, "seed": s} | dict.fromkeys(names, value) for (v, s), value in accuracy.items()]
    (tmp_path / "results.jsonl").write_text("\n".join(map(json.dumps, lines)))
    dual = cached.table().splitlines()[-1]
    # Accuracies are uncertain, the rise is not; a seed without an exact run is left out.
    assert dual.startswith("| dual | 2 | 0.500 ± 2.541 |")
    assert dual.count("+0.200 ± 0.000") == 2


def test_the_table_of_values_is_that_of_the_explained_variances() -> None:
    value, reward = (
        torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]]),
        torch.tensor([[0.0, 2.0], [1.0, 0.0], [1.0, 2.0]]),
    )
    # Var(R) is 1/3 and 4/3; Var(R - V) is 1/3 and 7/3.
    assert critic._explained(value, reward) == pytest.approx([0.0, -0.75], abs=1e-4)
    # The best coefficient is Cov(R, V) / Var(V): 1/2 and -1.
    torch.testing.assert_close(critic._scaled(value, reward), value * torch.tensor([0.5, -1.0]))
    results = [{"seed": seed, **{name: [0.1 * seed, 0.3] for name in critic.NAMES}} for seed in range(3)]
    results[0]["group"] = [0.3, 0.3]
    lines = critic.table(results).splitlines()
    assert lines[2] == "| critic | 0.10 ± 0.25 | 0.30 ± 0.00 | 0.20 ± 0.12 |"
    # Differences 0.3, 0 and 0 of the seeds at the first step.
    assert lines[-1].endswith("of the group, less the critic | 0.10 ± 0.43 | 0.00 ± 0.00 | 0.05 ± 0.22 |")


def test_the_variants_of_cached_rollouts_differ_in_cache_and_correction() -> None:
    recipes = [load_recipe(cached.RECIPE, (*cached.SETTINGS, *changes)) for changes in cached.VARIANTS.values()]
    found = [(r.sampler.cache, r.weighted_level) for r in recipes]
    assert found == [("off", None), ("prefix", None), ("prefix", "step"), ("dual", None), ("dual", "step")]


def test_the_table_of_refilled_groups_pairs_seeds() -> None:
    def cell(variant: str, seed: int, greedy: float) -> dict[str, Any]:
        shares = {"equal_rewards": 0.5, "without_signal": 0.25, "steps": 10}
        return {"method": "EGSPO", "variant": variant, "seed": seed, "greedy": greedy, "sampled": 0.5, **shares}

    ours = [cell(refill.REFILLED, seed, value) for seed, value in enumerate((0.3, 0.7))]
    results = [*ours, *(cell(refill.AS_DEAR, seed, value) for seed, value in enumerate((0.2, 0.6)))]
    lines = refill.table(results).splitlines()
    assert len(lines) == 4
    assert "0.500 ±" in lines[2]
    assert "(+0.100 ± 0.000)" in lines[2]
    assert "(" not in lines[3]


@pytest.mark.slow
def test_packs_of_views_are_compared_with_plain_rows() -> None:
    block, name, plain, alone, packed, ratio, *_ = packed_views.compare(4, "all 4 states", prompt_length=8, length=8)
    # A plain row has 16 columns, and so has a row of its own in a batch with the last block. A pack
    # has the prompt, the first block, and a copy of a block for each state.
    assert (block, name, plain, alone, packed) == ("4", "all 4 states", "64", "64", "28")
    assert ratio == "2.3"


@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no chromium")
@pytest.mark.slow
def test_the_reports_of_made_up_runs_are_built_and_opened(tmp_path: Path) -> None:
    pytest.importorskip("playwright")
    report.main(["--max-steps=8", "--rollouts=2", "--repeats=1", f"--output={tmp_path / 'report.md'}"])
    rows = [line.split(" | ") for line in (tmp_path / "report.md").read_text().splitlines()[4:]]
    assert [row[:2] for row in rows] == [
        ["| as the demo's: Sudoku", "16"],
        ["| as a language model's: code", "32"],
    ]
    assert all(float(row[-1].rstrip(" |")) > 0.05 for row in rows)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no chromium")
@pytest.mark.slow
def test_the_pictures_of_the_report_are_made(tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("playwright")
    from benchmark import screenshots
    from tests.helpers.reports import real_run

    folder = real_run(tiny_model, tmp_path / "run", "max_steps=2")
    screenshots.main([str(folder), f"--output={tmp_path}", "--schemes", "dark"])
    pictures = sorted(tmp_path.glob("*.png"))
    assert [picture.name for picture in pictures] == sorted(
        picture.name for picture in screenshots.IMAGES.glob("report-*-dark.png")
    )
    assert all(2_000 < picture.stat().st_size <= screenshots.LARGEST for picture in pictures)


def test_the_roofline_takes_the_slowest_of_its_three_limits() -> None:
    machine = roofline.Machine(((torch.bfloat16, 1e3), (torch.float32, 1e2)), bandwidth=1e4, launch=1.0)
    with torch.device("meta"), roofline.priced(machine) as priced:
        left, right = torch.empty(100, 50, dtype=torch.bfloat16), torch.empty(50, 20, dtype=torch.bfloat16)
        left @ right
        left.float()
        right.t()
    products = 2 * 100 * 50 * 20 / 1e3
    moved = 100 * 50 * (2 + 4) / 1e4
    assert priced.seconds == {"bfloat16 products": products, "everything else": pytest.approx(moved)}
    assert priced.total == pytest.approx(products + moved)


@pytest.mark.slow
def test_adapters_make_an_update_at_most_three_tenths_longer(capsys: pytest.CaptureFixture[str]) -> None:
    roofline.main([])
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    ratios = {name.strip(): (float(rollout), float(update)) for name, _, rollout, _, update in rows}
    assert ratios["bare, or adapters merged into the weights"] == (1.0, 1.0)
    assert ratios["adapters in bfloat16"][1] <= 1.3
    # Negative control: adapters as peft makes them convert what they read and multiply in float32.
    assert min(ratios["adapters in float32, as peft makes them"]) > 1.5


def test_the_tables_of_adaptive_schedules_average_over_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptive, "RESULTS", tmp_path / "results.jsonl")
    monkeypatch.setattr(adaptive, "trained", lambda variant, seed: (tmp_path, [LINE]))
    monkeypatch.setattr(adaptive, "base_of", lambda task, seed: tmp_path)
    monkeypatch.setattr(
        adaptive,
        "measured",
        lambda model, task, sampler: {"accuracy": 0.5 + 0.25 * sampler.is_adaptive, "forwards": 4.0},
    )
    variants = [adaptive.CONTROL, "threshold .9"]
    adaptive.run([("training", variant, seed) for variant in variants for seed in (0, 1)])
    adaptive.run([("frontier", "sudoku", seed) for seed in (0, 1)])
    adaptive.run([("training", adaptive.CONTROL, 0)])
    assert len(adaptive.results()) == 6, "a line does not run again"
    control, threshold = adaptive.training_table(adaptive.results()).splitlines()[2:]
    assert control == f"| {adaptive.CONTROL} | 2 | 0.500 ± 0.000 | 0.500 ± 0.000 | 0.500 ± 0.000 | 8.0 to 8.0 | 1 |"
    assert "| 0.750 ± 0.000 | 8.0 to 8.0 |" in threshold
    rows = adaptive.frontier_table(adaptive.results(), "sudoku").splitlines()[2:]
    assert rows[0] == "| fixed, 1 step | 4.0 | 0.500 ± 0.000 | 4.0 | 0.500 ± 0.000 |"
    assert rows[-1] == "| `entropy_bound=1` | 4.0 | 0.750 ± 0.000 | 4.0 | 0.750 ± 0.000 |"
    assert "| 4.0 - 8 | +0.250 ± 0.000 | +0.250 ± 0.000 |" in adaptive.paired_table(adaptive.results())
    points = adaptive.frontier_points(adaptive.results(), "sudoku")
    assert {point.panel for point in points} == {"sudoku, greedy", "sudoku, sampled at 0.9"}


LINE = {"compute/token_passes": 10.0, "diffusion/forwards": 8.0, "reward": 0.5}


def test_values_that_order_rewards_correlate_with_them_and_not_with_those_of_another_prompt() -> None:
    rng = np.random.default_rng(0)
    reward = rng.random((60, 4))
    found = long_answers.correlations_of(2 * reward - 1, reward, rng)
    assert found["all"] == found["within"] == found["low"] == found["high"] == 1.0
    assert abs(found["control"]) < 0.25
    # What differs between prompts only says nothing within a prompt.
    level = np.arange(60.0).repeat(4).reshape(60, 4)
    found = long_answers.correlations_of(level, level + reward, rng)
    assert found["all"] > 0.95
    assert found["within"] is None
    noise = long_answers.correlations_of(level + rng.random((60, 4)), level + reward, rng)
    assert noise["all"] > 0.95
    assert abs(noise["within"]) < 0.2
    assert long_answers.correlations_of(np.full((60, 4), np.nan), reward, rng)["all"] is None


def test_the_value_of_the_last_step_is_nearly_the_reward(tmp_path: Path) -> None:
    recipe = load_recipe("sudoku-tiny")
    tokenizer = word_tokenizer(recipe.task.tokens)
    shape = TinyConfig(num_layers=1, width=16, num_heads=2, max_length=34)
    save_model(tiny_denoiser(shape, tokenizer, seed=0), tokenizer, tmp_path)
    found = long_answers.sampled_values("sudoku-tiny", tmp_path, 16, 4)
    assert found["value"].shape == (16, 4, 8)
    assert found["reward"].shape == found["solved"].shape == (16, 4)
    # A path that writes EOS ends before the last step, and has no value there.
    assert 0.5 < 1 - np.isnan(found["value"][..., -1]).mean() <= 1
    assert long_answers.rank_correlation(found["value"][..., -1], found["reward"]) > 0.7


def test_the_table_of_longer_answers_shows_nine_steps_of_a_path() -> None:
    step = {"value": 0.1, "all": 0.5, "low": 0.4, "high": 0.6, "within": None, "control": 0.0}
    values = {"task": "story-small", "prompts": 2, "group": 4, "solved": 0.25, "reward": 0.3}
    table = long_answers.table([values | {"steps": [step] * 30}]).splitlines()
    assert "| denoising step of 30 | 1 | 5 | 8 | 12 | 15 | 19 | 23 | 26 | 30 |" in table
    assert table[5].startswith("| correlation, all completions | 0.50 |")
    assert table[6].startswith("| 95 % interval | 0.40 to 0.60 |")
    assert table[7].startswith("| correlation within prompts | - |")
    assert table[-1].startswith("| control: rewards of another prompt | 0.00 |")


@pytest.mark.slow
def test_the_models_of_a_comparison_are_decoded_once_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trained_models, "RESULTS", tmp_path / "results.jsonl")
    monkeypatch.setattr(trained_models, "NUM_ROWS", 16)
    monkeypatch.setattr(trained_models, "SAMPLED_ROWS", 4)
    monkeypatch.setattr(trained_models, "SAMPLES", 4)
    recipe = small(tmp_path, "methods=entropy", tuning=None, baselines=[])
    folder = compare(recipe, tell=lambda line: None)
    cells = [json.loads(line) for line in (folder / "cells.jsonl").read_text().splitlines()]

    arguments = ["small", "--folder", str(folder)]
    trained_models.main([*arguments, "--methods", "none"])
    assert {line["method"] for line in trained_models.read("small")} == {"base"}
    gone = tmp_path / "gone"
    shutil.copytree(folder, gone, ignore=shutil.ignore_patterns("runs"))
    with raises(RunError, "Run the comparison there", snapshot=False):
        trained_models.main(["small", "--folder", str(gone)])
    selected = recipe.model_copy(update={"methods": {}})
    assert {record["method"] for record, _ in trained_models.models(selected)} == {"base"}
    for _ in range(2):
        trained_models.main(arguments)
    lines = trained_models.read("small")
    assert sorted((line["method"], line["seed"]) for line in lines) == [
        (m, s) for m in ("base", "entropy") for s in (0, 1)
    ]
    for line in lines:
        # What a comparison measures of the same model on the same examples, by another path.
        (cell,) = (
            c
            for c in cells
            if c["stage"] != "pretraining" and (c["method"], c["seed"]) == (line["method"], line["seed"])
        )
        by_schedule = {point["schedule"]: point for point in line["frontier"]}
        for steps in ("2", "8"):
            assert by_schedule[f"fixed, {steps} steps"]["accuracy"] == cell["decoding_accuracy"][steps]
        assert by_schedule["`threshold=0.98`"]["forwards"] > 8, "a model that has learned nothing is never sure"
        assert list(line["pass_at"]) == ["1", "2", "4"]
        assert sorted(line["pass_at"].values()) == list(line["pass_at"].values())


def test_the_tables_of_trained_models_pair_seeds_and_show_the_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trained_models, "RESULTS", tmp_path / "results.jsonl")
    lines = [
        {"comparison": "c", "task": "t", "method": method, "seed": seed, "variant": "v"}
        | {"frontier": [{"schedule": name, "accuracy": 0.5, "forwards": 3.0 + seed} for name in trained_models.SHOWN]}
        | {"pass_at": {"1": level, "64": level + gain}}
        for method, gain in (("a", 0.2), ("base", 0.1))
        for seed, level in ((1, 0.6), (0, 0.2))
    ]
    # An older line of one seed, and a task whose completions are too short for eight steps.
    older = lines[0] | {"variant": "older", "pass_at": {"1": 0.0, "64": 0.0}}
    short = lines[0] | {"task": "short", "frontier": lines[0]["frontier"][:2]}
    trained_models.RESULTS.write_text("".join(json.dumps(line) + "\n" for line in (older, *lines, short)))
    rows = trained_models.diversity_table("c").splitlines()
    assert rows[2].startswith("| base | 2 | 0.400 (0.000 to 1.000) | 0.500 (0.000 to 1.000) |")
    assert rows[2].endswith("|  |")
    assert rows[3].endswith("| +0.100 ± 0.000 |"), "the rise is certain where the levels are not"
    frontier = trained_models.frontier_table("c").splitlines()[3]
    assert "0.500 ± 0.000 (3.5)" in frontier, "an adaptive schedule has its forward passes beside it"
    assert frontier.count("(") == sum(not name.startswith("fixed") for name in trained_models.SHOWN)
    assert trained_models.frontier_table("c").splitlines()[-1] == "| a | 1 | 0.500 | 0.500 |"
