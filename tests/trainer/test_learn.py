"""The second half of a training step: its gradients, its number of updates, its learning rate, and
its errors."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from tests.helpers.messages import raises
from tests.helpers.rollouts import collect
from tests.helpers.runs import train_recipe
from unmask.core.errors import ConfigError
from unmask.core.records import LossInputs, LossOutput, Rollout
from unmask.functional.noise import named_generator
from unmask.methods.egspo import EGSPO
from unmask.models import Denoiser, TinyConfig, char_tokenizer, tiny_denoiser
from unmask.recipes.schema import TrainRecipe
from unmask.rewards import per_completion
from unmask.rewards.scorer import Scorer
from unmask.tasks import Sudoku
from unmask.trainer.learn import Learner
from unmask.trainer.metrics import Tally
from unmask.trainer.reference import FrozenCopy

TASK = Sudoku()
TOKENIZER = char_tokenizer(TASK.alphabet)
ROWS = TASK.rows("train", 4)
SETTINGS = (
    "num_generations=3",
    "num_prompts=4",
    "method.num_selected=3",
    "method.beta=0.04",
    "optim.max_grad_norm=1.0e9",
    "optim.warmup_steps=0",
)


@per_completion
def count_ones(completions: list[str], **_: Any) -> list[float]:
    return [text.count("1") + 0.1 * len(text) for text in completions]


class Bench:
    """A denoiser, a rollout of 12 completions, and learners for them."""

    def __init__(self, denoiser: Denoiser, folder: Path) -> None:
        self.denoiser, self.folder = denoiser, folder
        self.accelerator = Accelerator()
        self.start = {name: value.clone() for name, value in denoiser.state_dict().items()}
        # Another policy of the same family, so that a KL to it is far from 0.
        self.other = tiny_denoiser(TinyConfig(num_layers=2, width=16, num_heads=2), TOKENIZER, seed=1)
        self.other.load_state_dict({name: 0.7 * value for name, value in self.start.items()})
        self.other.eval()

    def recipe(self, *overrides: str) -> TrainRecipe:
        return train_recipe(self.folder, self.folder, *SETTINGS, *overrides)

    def rollout(self, recipe: TrainRecipe) -> Rollout:
        self.denoiser.load_state_dict(self.start)
        scorer = Scorer({"ones": count_ones})
        return collect(self.denoiser, TOKENIZER, scorer, recipe, ROWS, 0, slice(None), Tally())

    def update(
        self, recipe: TrainRecipe, *, step: int = 0, reference: Denoiser | None = None, rollout: Rollout | None = None
    ) -> dict[str, float]:
        """Update the initial policy once and return the metrics; the parameters keep their
        gradients."""
        rollout = rollout or self.rollout(recipe)
        self.denoiser.load_state_dict(self.start)
        optimizer = torch.optim.AdamW(self.denoiser.parameters(), lr=1.0, weight_decay=0.0)
        learner = Learner(
            self.accelerator,
            self.denoiser,
            self.accelerator.prepare(optimizer),
            reference and FrozenCopy(reference),
            recipe,
        )
        tally = Tally()
        learner.update(rollout, step, named_generator(0, "update", step), tally)
        return tally.reduce(self.accelerator)

    def gradient(self) -> Tensor:
        return torch.cat([p.grad.flatten() for p in self.denoiser.parameters() if p.grad is not None])

    def weights(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.denoiser.parameters()])


@pytest.fixture
def bench(lively: Denoiser, tmp_path: Path) -> Bench:
    return Bench(lively, tmp_path)


def distribution(denoiser: Denoiser, state: Tensor, prompt: Tensor, temperature: float) -> Tensor:
    """Return [L, V] log-probabilities of one state, computed by the transformers model."""
    ids = torch.cat([prompt, state]).unsqueeze(0)
    logits = denoiser.backbone(input_ids=ids).logits[0, len(prompt) :].detach().double() / temperature
    logits[:, denoiser.mask_id] = -torch.inf
    return logits.log_softmax(-1)


# --- the first update ---


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("sampler.top_k=4", "sampler.top_p=0.9"),
        ("sampler.guidance=0.5",),
        ("sampler.block_length=8", "sampler.order=random"),
    ],
    ids=str,
)
def test_the_policy_that_sampled_is_the_policy_that_is_updated(bench: Bench, overrides: tuple[str, ...]) -> None:
    recipe = bench.recipe("method.beta=0", *overrides, "num_iterations=1")
    rollout = bench.rollout(recipe)
    metrics = bench.update(recipe, rollout=rollout)
    assert metrics["diffusion/mismatch_max"] <= 1e-5
    assert metrics["policy/ratio_max"] == 1.0
    assert metrics["clip_ratio/region_mean"] == 0.0
    assert metrics["diffusion/num_views"] == len(_steps_of_highest_entropy(rollout, 3)) > 12


def test_a_rollout_of_another_policy_is_a_mismatch(bench: Bench) -> None:
    recipe = bench.recipe("method.beta=0")
    rollout = bench.rollout(recipe)
    rollout.trajectory.logprob.add_(0.25)
    assert bench.update(recipe, rollout=rollout)["diffusion/mismatch_max"] == pytest.approx(0.25, abs=1e-4)


def test_another_logprob_temperature_is_not_reported_as_a_mismatch(bench: Bench) -> None:
    metrics = bench.update(bench.recipe("method.beta=0", "logprob_temperature=1.0"))
    assert "diffusion/mismatch_max" not in metrics
    # The ratio is taken between two policies at that temperature, so it is 1 all the same.
    assert metrics["policy/ratio_max"] > 0


def test_the_kl_to_the_start_is_zero_until_the_policy_moves(bench: Bench) -> None:
    recipe = bench.recipe("num_iterations=1")
    reference = tiny_denoiser(TinyConfig(num_layers=2, width=16, num_heads=2), TOKENIZER, seed=1).eval()
    reference.load_state_dict(bench.start)
    assert bench.update(recipe, reference=reference)["kl"] == 0.0
    assert bench.update(bench.recipe("num_iterations=2"), reference=reference)["kl"] > 1e-3


def test_the_gradient_at_ratio_one_is_the_policy_gradient_of_the_selected_steps(bench: Bench) -> None:
    recipe = bench.recipe("method.beta=0", "num_iterations=1", "method.type=egspo", "method.stepwise_weight=0")
    rollout = bench.rollout(recipe)
    bench.update(recipe, rollout=rollout)
    found = bench.gradient()

    # By hand, one state at a time: mean over the views of -A log pi(x_{k+1} | x_k) / (L / T).
    bench.denoiser.load_state_dict(bench.start)
    bench.denoiser.zero_grad()
    path = rollout.trajectory
    steps = _steps_of_highest_entropy(rollout, 3)
    advantage = (rollout.reward.view(4, 3) - rollout.reward.view(4, 3).mean(1, keepdim=True)).flatten()
    loss = torch.zeros(())
    for row, step in steps:
        ids = torch.cat([path.prompt_ids[row], path.state_before(step)[row]]).unsqueeze(0)
        logits = bench.denoiser.backbone(input_ids=ids).logits[0, path.prompt_ids.shape[1] :] / 0.9
        forbidden = torch.zeros(logits.shape[-1]).index_fill(0, torch.tensor([path.mask_id]), -torch.inf)
        logprob = (logits + forbidden).log_softmax(-1)
        committed = (path.unmask_step[row] == step).nonzero().squeeze(-1)
        loss = loss - advantage[row] * logprob[committed, path.tokens[row, committed]].sum() / 4 / len(steps)
    loss.backward()
    wanted = bench.gradient()
    assert wanted.norm() > 1e-3
    assert (found - wanted).norm() / wanted.norm() < 1e-5


def _steps_of_highest_entropy(rollout: Rollout, count: int) -> list[tuple[int, int]]:
    """Return selected (row, step) pairs by hand. Candidates end with the last step that committed a
    token other than EOS."""
    path, picked = rollout.trajectory, []
    for row in range(len(path)):
        written = [path.unmask_step[row] == k for k in range(path.num_steps)]
        joint = [float(path.entropy[row][here].double().sum()) for here in written]
        text = [k for k, here in enumerate(written) if (here & (path.tokens[row] != path.eos_id)).any()]
        candidates = [k for k, here in enumerate(written) if here.any() and k <= max(text, default=path.num_steps)]
        picked += [(row, k) for k in sorted(candidates, key=lambda k: -joint[k])[:count]]
    return picked


# --- chunks, minibatches, iterations ---


@pytest.mark.parametrize("kl", ["k3", "exact"])
@pytest.mark.slow
def test_batches_of_views_give_the_gradient_of_all_views(bench: Bench, kl: str) -> None:
    gradients, losses = [], []
    for size in (256, 7, 1):
        recipe = bench.recipe(f"views_per_forward={size}", f"method.kl={kl}", "num_iterations=1")
        losses.append(bench.update(recipe, reference=bench.other)["loss"])
        gradients.append(bench.gradient())
    assert gradients[0].norm() > 1e-3
    for gradient in gradients[1:]:
        assert (gradient - gradients[0]).norm() / gradients[0].norm() < 1e-5
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


class Recording(EGSPO):
    """EGSPO that remembers the views of every loss."""

    type: Literal["recording"] = "recording"  # type: ignore[assignment]
    seen: ClassVar[list[list[tuple[float, ...]]]] = []
    rows: ClassVar[list[list[int]]] = []

    def loss(self, inputs: LossInputs) -> LossOutput:
        self.rows.append(inputs.row.tolist())
        self.seen.append([tuple(row) for row in inputs.old.tolist()])
        return super().loss(inputs)


def test_every_iteration_visits_each_view_once_in_minibatches_of_similar_size(bench: Bench) -> None:
    recipe = bench.recipe("num_iterations=3", "num_minibatches=5", "views_per_forward=5")
    recipe = recipe.model_copy(update={"method": Recording(num_selected=3, beta=0.0)})
    Recording.seen.clear()
    Recording.rows.clear()
    bench.update(recipe)
    visits = [view for chunk in Recording.seen for view in chunk]
    assert len(visits) == 3 * 36
    epochs = [visits[start : start + 36] for start in (0, 36, 72)]
    assert all(len(set(epoch)) == 36 for epoch in epochs)
    assert len({frozenset(epoch) for epoch in epochs}) == 1
    assert epochs[0] != epochs[1]
    # 12 completions of 3 views in 5 minibatches, 3 + 3 + 2 + 2 + 2 completions, each in chunks of
    # at most 5 views.
    assert [len(chunk) for chunk in Recording.seen[:10]] == [5, 4, 5, 4, 5, 1, 5, 1, 5, 1]
    first = {row for chunk in Recording.rows[:2] for row in chunk}
    assert len(first) == 3, "a completion's views stay together"


@pytest.mark.parametrize(("iterations", "minibatches"), [(1, 1), (3, 1), (2, 4), (1, 50)])
@pytest.mark.slow
def test_there_is_one_update_for_each_minibatch_that_has_views(
    bench: Bench, iterations: int, minibatches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    take = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *a, **k: (steps.append(1), take(self, *a, **k))[1])
    bench.update(bench.recipe("method.beta=0", f"num_iterations={iterations}", f"num_minibatches={minibatches}"))
    assert len(steps) == iterations * min(minibatches, 12)


def test_later_updates_compare_with_the_policy_at_the_start_of_the_step(bench: Bench) -> None:
    still = bench.update(bench.recipe("method.beta=0", "num_iterations=3", "optim.learning_rate=1.0e-12"))
    moved = bench.update(bench.recipe("method.beta=0", "num_iterations=3", "optim.learning_rate=1.0e-2"))
    assert still["policy/ratio_max"] == pytest.approx(1.0, abs=1e-5)
    assert moved["policy/ratio_max"] > 1.01


# --- views without a gradient ---


@pytest.mark.parametrize("flat", [slice(3, 9), slice(None)], ids=["two groups of four", "all groups"])
def test_leaving_out_views_of_advantage_zero_changes_no_weight(
    bench: Bench, flat: slice, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = bench.recipe(
        "method.type=egspo", "method.stepwise_weight=0", "method.beta=0", "num_iterations=3", "num_minibatches=2"
    )
    rollout = bench.rollout(recipe)
    rollout.reward[flat] = 0.5
    runs = []
    for penalties in (("beta",), None):
        monkeypatch.setattr(EGSPO, "penalties", penalties)
        runs.append((bench.update(recipe, rollout=rollout), bench.weights()))
    (less, fewer), (more, all_views) = runs
    start = torch.cat([bench.start[name].flatten() for name, _ in bench.denoiser.named_parameters()])
    share = 0.5 if flat == slice(3, 9) else 1.0
    assert less["diffusion/frac_views_left_out"] == pytest.approx(share, abs=0.1)
    assert more["diffusion/frac_views_left_out"] == 0.0
    # Adam divides by the size of a gradient, so a weight whose gradient is rounding may move either way.
    assert (fewer - all_views).norm() <= 0.02 * (all_views - start).norm()
    for name in ("loss", "grad_norm", "advantage/abs_mean", "diffusion/num_views"):
        assert less[name] == pytest.approx(more[name], rel=1e-4, abs=1e-7)


def test_momentum_moves_the_weights_when_all_views_are_left_out(bench: Bench) -> None:
    recipe = bench.recipe("method.type=egspo", "method.stepwise_weight=0", "method.beta=0", "num_iterations=1")
    learnt, flat = bench.rollout(recipe), bench.rollout(recipe)
    flat.reward.fill_(0.5)
    bench.denoiser.load_state_dict(bench.start)
    optimizer = bench.accelerator.prepare(torch.optim.AdamW(bench.denoiser.parameters(), lr=1.0, weight_decay=0.0))
    learner = Learner(bench.accelerator, bench.denoiser, optimizer, None, recipe)
    weights = [bench.weights()]
    for rollout in (learnt, flat):
        learner.update(rollout, 0, named_generator(0, "update", 0), Tally())
        weights.append(bench.weights())
    steps = [(after - before).norm() for before, after in pairwise(weights)]
    assert steps[0] > 0
    # Adam's second step with a gradient of 0: its moments are 0.9 / 0.19 and 0.999 / 0.001999 of the first.
    assert steps[1] / steps[0] == pytest.approx(0.09 / 0.19 / (0.000999 / 0.001999) ** 0.5, rel=1e-2)


def test_views_without_an_advantage_are_not_scored(bench: Bench) -> None:
    recipe = bench.recipe(
        "method.type=egspo", "method.stepwise_weight=0", "method.beta=0", "num_iterations=2", "views_per_forward=256"
    )
    rollout = bench.rollout(recipe)
    rollout.reward[3:9] = 0.5
    seen: list[int] = []
    handle = bench.denoiser.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    bench.update(recipe, rollout=rollout)
    handle.remove()
    trained = {row for row, _ in _steps_of_highest_entropy(rollout, 3)} - set(range(3, 9))
    views = sum(row in trained for row, _ in _steps_of_highest_entropy(rollout, 3))
    assert seen == [views] * 3  # the old policy and two iterations


# --- the reference ---


@pytest.mark.parametrize("overrides", [(), ("num_minibatches=2", "views_per_forward=4")], ids=["in order", "shuffled"])
@pytest.mark.slow
def test_the_exact_kl_is_the_sum_over_the_vocabulary(bench: Bench, overrides: tuple[str, ...]) -> None:
    recipe = bench.recipe("method.kl=exact", "num_iterations=1", "optim.learning_rate=1.0e-12", *overrides)
    rollout = bench.rollout(recipe)
    path = rollout.trajectory
    found = bench.update(recipe, reference=bench.other, rollout=rollout)["kl"]
    by_view = []
    for row, step in _steps_of_highest_entropy(rollout, 3):
        state = path.state_before(step)[row]
        p, q = (distribution(d, state, path.prompt_ids[row], 0.9) for d in (bench.denoiser, bench.other))
        kl = torch.where(p.isinf(), 0.0, p.exp() * (p - q)).sum(-1)
        by_view.append(float(kl[path.unmask_step[row] == step].sum()))
    assert min(by_view) > 0.0
    assert found == pytest.approx(sum(by_view) / len(by_view), rel=1e-4)


def test_a_method_without_a_reference_has_no_kl(bench: Bench) -> None:
    assert "kl" not in bench.update(bench.recipe("method.beta=0"), reference=bench.other)


def test_the_gradient_of_the_kl_is_proportional_to_beta(bench: Bench) -> None:
    gradients = []
    for beta in (0.0, 0.5, 1.0):
        bench.update(bench.recipe(f"method.beta={beta}", "num_iterations=1"), reference=bench.other)
        gradients.append(bench.gradient())
    half, whole = gradients[1] - gradients[0], gradients[2] - gradients[0]
    assert whole.norm() > 1e-3
    assert (whole - 2 * half).norm() / whole.norm() < 1e-4


# --- rate and clipping ---


@pytest.mark.slow
def test_the_learning_rate_follows_the_schedule(bench: Bench) -> None:
    settings = ("optim.learning_rate=0.01", "optim.lr_floor=0.1", "max_steps=6", "method.beta=0")
    recipe = bench.recipe(*settings, "optim.warmup_steps=2")
    rates = [bench.update(recipe, step=step)["learning_rate"] for step in range(6)]
    # Up to the peak in two steps, then on a line to a tenth of it.
    assert rates == pytest.approx([0.005, 0.01, 0.00775, 0.0055, 0.00325, 0.001])
    recipe = bench.recipe(*settings, "optim.warmup_steps=0", "optim.lr_schedule=constant")
    assert bench.update(recipe, step=5)["learning_rate"] == 0.01


def test_the_optimizer_uses_the_scheduled_rate(bench: Bench) -> None:
    sizes = []
    for step in (0, 5):
        bench.update(bench.recipe("optim.warmup_steps=0", "method.beta=0", "num_iterations=1"), step=step)
        before = torch.cat([bench.start[name].flatten() for name, _ in bench.denoiser.named_parameters()])
        sizes.append(float((bench.weights() - before).abs().max()))
    # The first update of Adam moves a weight by the rate; sudoku-tiny's goes from 6e-4 to a tenth.
    assert sizes == pytest.approx([6e-4, 6e-5], rel=0.02)


def test_the_gradient_is_clipped_and_its_norm_before_clipping_is_logged(bench: Bench) -> None:
    recipe = bench.recipe("method.beta=0", "num_iterations=1")
    free = bench.update(recipe)["grad_norm"]
    assert free == pytest.approx(float(bench.gradient().norm()), rel=1e-5)
    recipe = bench.recipe("method.beta=0", "num_iterations=1", f"optim.max_grad_norm={free / 10}")
    assert bench.update(recipe)["grad_norm"] == pytest.approx(free, rel=1e-5)
    assert float(bench.gradient().norm()) == pytest.approx(free / 10, rel=1e-3)


def test_equal_rewards_do_not_change_the_weights(bench: Bench) -> None:
    recipe = bench.recipe("method.beta=0", "num_iterations=2", "method.type=egspo", "method.stepwise_weight=0")
    rollout = bench.rollout(recipe)
    rollout.reward.fill_(0.5)
    metrics = bench.update(recipe, rollout=rollout)
    assert (metrics["advantage/abs_mean"], metrics["loss"], metrics["grad_norm"]) == (0.0, 0.0, 0.0)
    assert all(torch.equal(value, bench.start[name]) for name, value in bench.denoiser.state_dict().items())


# --- values that are not finite ---


def _nan_with_gradient(module: Any, arguments: Any, output: Tensor) -> Tensor | None:
    return output * float("nan") if torch.is_grad_enabled() else None


def _nan_gradient(module: Any, arguments: Any, output: Tensor) -> Tensor | None:
    if torch.is_grad_enabled():
        output.register_hook(lambda gradient: gradient * float("nan"))
    return None


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        (_nan_with_gradient, r"^the loss is nan in completions \[0, 1, 2, 3, 4, 5, 6, 7\] of the rollout$"),
        (_nan_gradient, "^the norm of the gradient is nan$"),
    ],
)
def test_a_value_that_is_not_finite_stops_the_run_before_the_weights_change(
    bench: Bench, hook: Callable[..., Tensor | None], message: str
) -> None:
    recipe = bench.recipe("method.beta=0", "num_iterations=1")
    rollout = bench.rollout(recipe)
    handle = bench.denoiser.register_forward_hook(hook)
    with pytest.raises(FloatingPointError, match=message):
        bench.update(recipe, rollout=rollout)
    handle.remove()
    assert all(torch.equal(value, bench.start[name]) for name, value in bench.denoiser.state_dict().items())


# --- methods of one's own ---


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (lambda loss: loss, ("egspo", "Tensor", "LossOutput")),
        (lambda loss: LossOutput(loss.sum()), ("egspo", "()", "one number for each view")),
        (lambda loss: LossOutput(loss.mean(0, keepdim=True)), ("egspo", "(1,)", "separable")),
    ],
    ids=["a tensor", "a sum", "a mean"],
)
def test_a_loss_that_is_not_one_number_for_each_view_is_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, returned: Any, words: tuple[str, ...]
) -> None:
    recipe = bench.recipe("num_iterations=1", "method.beta=0")
    cls = type(recipe.method)
    loss = cls.loss
    monkeypatch.setattr(cls, "loss", lambda self, inputs: returned(loss(self, inputs).loss))
    with raises(ConfigError, *words):
        bench.update(recipe)
