"""The page in a browser: what it shows is what the run folder holds, at any step, prompt, member
and training step."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.paths import RESULTS
from tests.helpers.reports import hand_made, real_run, write_run
from unmask.core.records import Rollout
from unmask.models import load_model
from unmask.report.build import write_report
from unmask.runs.metrics import read_metrics
from unmask.runs.saved_rollouts import SavedRollout

pytestmark = pytest.mark.slow

Opened = Callable[..., Any]

STEPS = 8
HIDDEN = "·"

READ = """() => {
  const all = (host, selector) => [...host.querySelectorAll(selector)];
  const text = (node) => node.textContent;
  const [state, guess] = [".stage-main", ".stage-guess"].map((name) => document.querySelector(name));
  return {
    clock: text(document.querySelector(".clock")),
    facts: Object.fromEntries(all(document, ".facts div").map((row) => [text(row.children[0]), text(row.children[1])])),
    state: all(state, ".word").map(text),
    states: all(state, ".token").map((token) => token.dataset.state),
    guess: guess.hidden ? null : all(guess, ".word").map(text),
    value: text(document.querySelector(".pane-head .figure")),
    mates: all(document, ".mate").map((mate) => (
      { texts: all(mate, ".word").map(text), reward: text(mate.querySelector("b")), is: mate.getAttribute("aria-pressed") }
    )),
  };
}"""


@dataclass
class Made:
    """A run, and what its page should show, computed from the folder without the report's code."""

    folder: Path
    page: Path
    tokenizer: Any

    def saved(self, step: int) -> SavedRollout:
        return SavedRollout.load(self.folder / "rollouts" / f"step-{step:08d}.safetensors")

    def text(self, token: int) -> str:
        return "∎" if token == self.tokenizer.eos_token_id else str(self.tokenizer.decode([token]))

    def expected(self, step: int, row: int, k: int) -> dict[str, Any]:
        """What the frame of denoising step k of a completion shows."""
        saved = self.saved(step)
        path, guesses = saved.rollout.trajectory, saved.guesses
        assert guesses is not None
        assert guesses.reward is not None
        when, now = path.unmask_step[row].tolist(), path.unmask_step[row] == k
        slots = path.selected_steps[row].tolist()
        frame = {
            "state": [
                self.text(token) if step <= k else HIDDEN
                for token, step in zip(path.tokens[row].tolist(), when, strict=True)
            ],
            "now": now.tolist(),
            "selected": k in slots,
        }
        if k < STEPS:
            frame |= {
                "entropy": float(path.entropy[row, now].double().sum()),
                "guess": [self.text(t) for t in guesses.tokens[row, k].tolist()],
                "value": float(guesses.reward[row, k]),
                "advantage": self.advantage(saved.rollout, row, slots.index(k)) if k in slots else None,
            }
        return frame

    def advantage(self, rollout: Rollout, row: int, slot: int) -> float:
        """EGSPO-SA's as the paper has it: the return R_k = (r + λ (r - V_k)) / (1 + λ) less its
        mean over the group, λ = 1/2."""
        assert rollout.one_step_reward is not None
        reward, value = rollout.reward.double(), rollout.one_step_reward[:, slot].double()
        returns = (reward + 0.5 * (reward - value)) / 1.5
        first = row // rollout.group_size * rollout.group_size
        return float(returns[row] - returns[first : first + rollout.group_size].mean())


@pytest.fixture(scope="module")
def made(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = real_run(tiny_model, tmp_path_factory.mktemp("runs") / "mine")
    return Made(folder, write_report([folder]).path, load_model(tiny_model)[1])


def shown_number(text: str) -> float:
    return float(text.removesuffix(" nats").replace("−", "-").replace("+", ""))


def assert_shows(page: Any, made: Made, step: int, row: int, k: int) -> None:
    shown, expected = page.evaluate(READ), made.expected(step, row, k)
    assert shown["state"] == expected["state"]
    assert [state == "now" for state in shown["states"]] == expected["now"]
    assert [state == "hidden" for state in shown["states"]] == [text == HIDDEN for text in expected["state"]]
    rollout = made.saved(step).rollout
    size = rollout.group_size
    group = row // size * size
    assert [mate["is"] for mate in shown["mates"]] == [str(group + i == row).lower() for i in range(size)]
    for i, mate in enumerate(shown["mates"]):
        assert mate["texts"] == made.expected(step, group + i, k)["state"]
        assert float(mate["reward"]) == pytest.approx(float(rollout.reward[group + i]), abs=6e-4)
    if k == STEPS:
        assert "Finished" in shown["clock"]
        assert float(shown["value"]) == pytest.approx(float(rollout.reward[row]), abs=6e-4)
        assert shown["guess"] == expected["state"]
        return
    assert shown["clock"] == f"Step {k + 1} of {STEPS}k = {k}"
    facts = shown["facts"]
    assert shown_number(facts["step entropy H"]) == pytest.approx(expected["entropy"], abs=6e-4)
    assert shown["guess"] == expected["guess"]
    assert float(shown["value"]) == shown_number(facts["value of the state V"])
    assert float(shown["value"]) == pytest.approx(expected["value"], abs=6e-4)
    assert int(facts["tokens written"]) == sum(expected["now"])
    assert (facts["trained at this step"] == "yes ▲") == expected["selected"]
    if expected["advantage"] is None:
        assert facts["advantage A"] == "–"
    else:
        assert shown_number(facts["advantage A"]) == pytest.approx(expected["advantage"], abs=6e-4)


def wait_for(page: Any, condition: str, seconds: float = 15) -> None:
    """Until an expression holds. Playwright's own waiting evaluates text inside the page, which the
    page's policy forbids."""
    until = time.monotonic() + seconds
    while not page.evaluate(condition):
        assert time.monotonic() < until, condition
        page.wait_for_timeout(20)


def pick(page: Any, group: str, name: str) -> None:
    page.get_by_role("group", name=group).get_by_role("radio", name=name, exact=True).check()


def to_first(page: Any) -> None:
    page.get_by_role("button", name="To the first step").click()
    wait_for(page, "document.querySelector('.scrub').value === '0'")


def test_playing_shows_every_step_and_ends_at_the_finished_completion(made: Made, opened: Opened) -> None:
    page = opened(made.page)
    to_first(page)
    pick(page, "Speed", "fast")
    # Each frame that is shown is noted by its clock.
    page.evaluate(
        """() => { window.seen = []; new MutationObserver(() => seen.push(document.querySelector(".clock").textContent))
        .observe(document.querySelector(".clock"), { childList: true }); }"""
    )
    page.get_by_role("button", name="Play", exact=True).click()
    assert page.get_by_role("button", name="Pause", exact=True).is_visible()
    page.get_by_role("button", name="Play", exact=True).wait_for(timeout=20_000)
    seen = page.evaluate("window.seen")
    assert [text for text in seen if text.startswith("Step")][-STEPS + 1 :] == [
        f"Step {k + 1} of {STEPS}k = {k}" for k in range(1, STEPS)
    ]
    assert_shows(page, made, 2, 0, STEPS)


def parts_outside(page: Any, completion: str = ".stage-main .tokens") -> list[str]:
    """Parts of the film that do not lie wholly inside the window; a long completion scrolls in a
    part of it."""
    parts = (completion, ".play", ".rows", ".scrub")
    rects = [page.locator(part).bounding_box() for part in parts]
    height = page.viewport_size["height"]
    return [p for p, r in zip(parts, rects, strict=True) if r["y"] < 0 or r["y"] + r["height"] > height]


@pytest.mark.parametrize(("width", "height"), [(1280, 720), (390, 844), (390, 664)])
def test_board_play_and_timeline_are_in_one_view_from_the_first_frame(
    made: Made, opened: Opened, width: int, height: int
) -> None:
    page = opened(made.page, viewport={"width": width, "height": height}, reduced_motion="reduce")
    page.locator("nav a[href='#film']").click()
    wait_for(page, "document.querySelector('#film').getBoundingClientRect().top < 100")
    assert_shows(page, made, 2, 0, 0)
    assert parts_outside(page) == []
    page.get_by_role("button", name="One step forward").click()
    assert parts_outside(page) == []


@pytest.mark.parametrize(("width", "height"), [(1280, 720), (390, 844)])
@pytest.mark.parametrize("task", ["dataset", "kodcode"])
def test_a_long_text_and_its_guess_leave_play_and_timeline_in_view(
    opened: Opened, tmp_path: Path, task: str, width: int, height: int
) -> None:
    words = [f"word{i} " if i % 9 else "\n    " for i in range(200)]
    folder = hand_made(tmp_path / "long", ["Why? " * 40], [words, words[::-1]], task={"type": task})
    page = opened(write_report([folder]).path, viewport={"width": width, "height": height}, reduced_motion="reduce")
    page.locator("nav a[href='#film']").click()
    wait_for(page, "document.querySelector('#film').getBoundingClientRect().top < 100")
    assert page.locator(".stage-guess .token").count() == 200
    assert parts_outside(page, ".stage-main") == []
    page.get_by_role("button", name="Finished completion").click()
    assert parts_outside(page, ".stage-main") == []


def test_a_window_that_is_too_low_is_noticed(made: Made, opened: Opened) -> None:
    page = opened(made.page, viewport={"width": 1280, "height": 420}, reduced_motion="reduce")
    page.locator("nav a[href='#film']").click()
    assert ".scrub" in parts_outside(page)


def test_play_brings_the_whole_film_into_view(made: Made, opened: Opened) -> None:
    page = opened(made.page, viewport={"width": 1280, "height": 720}, reduced_motion="reduce")
    page.locator(".play").focus()
    page.evaluate("scrollTo(0, 0)")
    page.get_by_role("button", name="Play", exact=True).press("Enter")
    wait_for(page, "document.querySelector('#film').getBoundingClientRect().top < 100")
    assert parts_outside(page) == []


def test_colours_of_phases_do_not_depend_on_their_times(opened: Opened, tmp_path: Path) -> None:
    def colours(name: str, times: dict[str, float]) -> dict[str, str]:
        folder = write_run(tmp_path / name, [{"step": 1, "reward": 0.5} | times], {"seed": 0})
        parts = opened(write_report([folder]).path).locator(".parts li")
        return {
            parts.nth(i).locator("span").first.text_content(): parts.nth(i).locator("i").get_attribute("class")
            for i in range(parts.count())
        }

    slow_rollout = colours("one", {"time/rollout": 3.0, "time/update": 1.0, "time/evaluation": 2.0})
    slow_update = colours("two", {"time/rollout": 1.0, "time/update": 3.0, "time/evaluation": 2.0})
    assert slow_rollout == slow_update
    assert len(set(slow_rollout.values())) == 3


def test_a_film_can_be_paused_and_goes_on_from_there(made: Made, opened: Opened) -> None:
    page = opened(made.page)
    to_first(page)
    pick(page, "Speed", "slow")
    page.get_by_role("button", name="Play", exact=True).click()
    wait_for(page, "document.querySelector('.scrub').value === '1'")
    page.get_by_role("button", name="Pause", exact=True).click()
    page.wait_for_timeout(1_600)
    assert_shows(page, made, 2, 0, 1)


def test_every_step_of_members_prompts_and_steps_of_training_is_what_the_folder_says(
    made: Made, opened: Opened
) -> None:
    page = opened(made.page)
    for film, (step, group, member) in enumerate([(2, 0, 1), (4, 1, 0), (6, 1, 2)]):
        page.get_by_role("slider", name="Training step").fill(str(film))
        page.get_by_role("combobox", name="Prompt").select_option(str(group))
        pick(page, "Member of the group", str(member + 1))
        size = made.saved(step).rollout.group_size
        to_first(page)
        for k in range(STEPS + 1):
            assert_shows(page, made, step, group * size + member, k)
            page.get_by_role("button", name="One step forward").click()
            wait_for(page, f"document.querySelector('.scrub').value === '{min(k + 1, STEPS)}'")
        assert page.get_by_role("region", name="Prompt").text_content() == made.saved(step).prompts[group]


def test_dragging_the_slider_goes_to_the_step_under_the_hand(made: Made, opened: Opened) -> None:
    page = opened(made.page)
    slider = page.get_by_role("slider", name="Denoising step", exact=True)
    slider.scroll_into_view_if_needed()
    to_first(page)
    box = slider.bounding_box()
    middle = box["y"] + box["height"] / 2

    def place(k: int) -> float:
        return float(box["x"] + 10 + (box["width"] - 20) * k / STEPS)

    page.mouse.move(place(0), middle)
    page.mouse.down()
    for k in (2, 5, 3):
        page.mouse.move(place(k), middle, steps=4)
        wait_for(page, f"document.querySelector('.scrub').value === '{k}'")
        assert_shows(page, made, 2, 0, k)
    page.mouse.up()
    # The columns of the curves are clicked likewise, and stand over the slider's stops.
    page.mouse.click(place(6), page.locator(".rows").bounding_box()["y"] + 20)
    wait_for(page, "document.querySelector('.scrub').value === '6'")
    assert_shows(page, made, 2, 0, 6)


def test_keys_do_what_the_hand_does(made: Made, opened: Opened) -> None:
    page = opened(made.page)
    to_first(page)
    page.locator("#film-title").click()
    page.locator("body").press("ArrowRight")
    page.locator("body").press("ArrowRight")
    wait_for(page, "document.querySelector('.scrub').value === '2'")
    assert_shows(page, made, 2, 0, 2)
    page.locator("body").press("n")
    wait_for(page, "document.querySelectorAll('.mate')[1].getAttribute('aria-pressed') === 'true'")
    assert_shows(page, made, 2, 1, 2)
    page.locator("body").press("]")
    wait_for(page, "document.querySelector('.picks output').textContent === '4'")
    assert_shows(page, made, 4, 1, 2)
    slider = page.get_by_role("slider", name="Denoising step", exact=True)
    slider.focus()
    slider.press("End")
    assert_shows(page, made, 4, 1, STEPS)
    assert slider.get_attribute("aria-valuetext") == f"Finished after {STEPS} steps"
    # Tokens are walked with the arrows, and each says what it is.
    token = page.locator(".stage-main .token").first
    token.focus()
    token.press("ArrowDown")
    assert page.evaluate("document.activeElement.dataset.i") == "4"
    path = made.saved(4).rollout.trajectory
    said = page.locator(".detail").text_content()
    when = int(path.unmask_step[1, 4])
    assert f"Position 4: “{made.text(int(path.tokens[1, 4]))}”" in said
    assert f"(k = {when}) with probability {float(path.logprob[1, 4].exp()):.3f}" in said


@pytest.mark.parametrize("altered", ["reward", "entropy", "unmask_step", "one_step_reward", "guess"])
def test_a_page_that_shows_something_else_is_noticed(made: Made, opened: Opened, tmp_path: Path, altered: str) -> None:
    # What the tests above would not notice if they compared the page with itself.
    folder = Path(shutil.copytree(made.folder, tmp_path / "run"))
    file = folder / "rollouts" / "step-00000002.safetensors"
    kept = SavedRollout.load(file)
    rollout, path = kept.rollout, kept.rollout.trajectory
    assert rollout.one_step_reward is not None
    assert kept.guesses is not None
    k = int(path.selected_steps[0, 0])
    if altered == "reward":
        rollout.reward[1] += 0.25
    elif altered == "entropy":
        path.entropy[0, int((path.unmask_step[0] == k).nonzero()[0])] += 0.01
    elif altered == "unmask_step":
        path.unmask_step[0] = path.unmask_step[0].roll(1)
    elif altered == "one_step_reward":
        rollout.one_step_reward[2, 0] += 0.25
    else:
        kept.guesses.tokens[0, k, 3] += 1
    kept.save(file)
    page = opened(made.page)
    page.locator(".scrub").fill(str(k))
    wait_for(page, f"document.querySelector('.scrub').value === '{k}'")
    assert_shows(page, made, 2, 0, k)
    with pytest.raises(AssertionError):
        assert_shows(page, replace(made, folder=folder), 2, 0, k)


def names_missing(page: Any) -> list[str]:
    """Roles of controls and landmarks in the accessibility tree that have no name."""
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    named = {"button", "slider", "combobox", "radio", "link", "checkbox", "textbox", "region", "group", "radiogroup"}
    nodes = [n for n in tree if not n.get("ignored") and n.get("role", {}).get("value") in named]
    assert len(nodes) > 20
    return [n["role"]["value"] for n in nodes if not n.get("name", {}).get("value", "").strip()]


@pytest.mark.parametrize("width", [1280, 390])
def test_every_control_has_a_name_and_nothing_sticks_out(made: Made, opened: Opened, width: int) -> None:
    page = opened(made.page, viewport={"width": width, "height": 800})
    assert names_missing(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # Whatever can be focused shows that it is.
    for selector in (".play", ".scrub", ".plot", ".mate", "select", ".stage-main .token", "nav a"):
        page.locator(selector).first.focus()
        page.keyboard.press("Shift")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none", selector


def test_a_name_that_is_missing_is_found(made: Made, opened: Opened) -> None:
    # What the test above would not notice if the tree were read wrongly.
    page = opened(made.page)
    page.evaluate("document.querySelector('.play').removeAttribute('aria-label')")
    page.evaluate("document.querySelector('.play').textContent = ''")
    assert names_missing(page) == ["button"]


def test_light_and_dark_follow_the_system_until_they_are_chosen(made: Made, opened: Opened) -> None:
    def paper(page: Any) -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    light, dark = opened(made.page, color_scheme="light"), opened(made.page, color_scheme="dark")
    assert paper(light) != paper(dark)
    before = paper(dark)
    pick(dark, "Theme", "Light")
    assert paper(dark) == paper(light)
    pick(light, "Theme", "Dark")
    assert paper(light) == before


def test_who_wants_no_motion_gets_none(made: Made, opened: Opened) -> None:
    for wish, expected in (("reduce", False), ("no-preference", True)):
        page = opened(made.page, reduced_motion=wish)
        moves = page.evaluate("parseFloat(getComputedStyle(document.querySelector('.token')).transitionDuration) > 0")
        assert moves == expected


def test_charts_are_read_off_with_keys(made: Made, opened: Opened) -> None:
    page = opened(made.page)
    slider = page.get_by_role("slider", name="Reward: read off values")
    slider.press("Home")
    slider.press("ArrowRight")
    lines = read_metrics(made.folder)
    assert slider.get_attribute("aria-valuetext") == f"2: reward {lines[2]['reward']:.3f}"
    chart = page.get_by_role("slider", name="Accuracy: read off values")
    last = lines[-1]
    interval = " ".join(f"{last[f'eval/test@0/{key}']:.3f}" for key in ("accuracy", "low", "high"))
    assert re.sub(r"[()]| to", "", chart.get_attribute("aria-valuetext")).find(f"greedy {interval}") > 0


def test_the_last_saved_guess_is_shown_and_labelled(tiny_model: Path, tmp_path: Path, opened: Opened) -> None:
    folder = real_run(tiny_model, tmp_path / "few", "method={type: egspo, num_selected: 1}", "log_rollouts_guesses=2")
    page = opened(write_report([folder]).path)
    guesses = SavedRollout.load(folder / "rollouts" / "step-00000002.safetensors").guesses
    assert guesses is not None
    assert guesses.step.tolist() == [0, STEPS - 1]
    tokenizer = load_model(tiny_model)[1]
    to_first(page)
    for k in range(STEPS):
        at = k // (STEPS - 1)
        shown = page.evaluate(READ)
        texts = [tokenizer.decode([token]) for token in guesses.tokens[0, at].tolist()]
        assert [text.replace("∎", "<eos>") for text in shown["guess"]] == texts
        title = page.locator(".side h3").first.text_content()
        assert title == ("One-step guess" if k in (0, STEPS - 1) else "One-step guess at k = 0")
        # What is not of this step is not given as its value.
        assert (shown["facts"]["value of the state V"] == "–") == (k not in (0, STEPS - 1))
        page.get_by_role("button", name="One step forward").click()
        wait_for(page, f"document.querySelector('.scrub').value === '{k + 1}'")


def test_runs_are_drawn_into_one_chart_and_can_be_hidden(made: Made, opened: Opened, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", [{"step": i, "reward": 0.25} for i in range(1, 9)], {"seed": 1})
    page = opened(write_report([made.folder, other], tmp_path / "both.html").path)
    chart = page.locator(".chart", has=page.get_by_role("heading", name="Reward", exact=True))
    assert chart.locator("path.line").count() == 2
    dashes = chart.locator("path.line").evaluate_all("lines => lines.map((l) => l.getAttribute('stroke-dasharray'))")
    assert len(set(dashes)) == 2
    name = chart.get_by_role("button", name="other")
    name.click()
    assert name.get_attribute("aria-pressed") == "false"
    assert chart.locator("[data-series].off").count() == 1


def test_a_run_keeps_its_colour_in_charts_that_lack_another_run(opened: Opened, tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", [{"step": i, "reward": 0.5} for i in range(1, 4)], {"seed": 0})
    two = write_run(tmp_path / "two", [{"step": i, "reward": 0.25, "kl": 0.1} for i in range(1, 4)], {"seed": 1})
    page = opened(write_report([one, two], tmp_path / "both.html").path)
    strokes = [
        page.locator(".chart", has=page.get_by_role("heading", name=name, exact=True))
        .locator("path.line")
        .last.evaluate("line => [getComputedStyle(line).stroke, line.getAttribute('stroke-dasharray')]")
        for name in ("Reward", "KL to the reference")
    ]
    assert strokes[0] == strokes[1]


def test_labels_of_a_chart_are_whole_and_steps_are_whole_numbers(opened: Opened, tmp_path: Path) -> None:
    lines = [{"step": i, "loss": -2.55e-3 + 2e-4 * i, "completions/mean_length": 16.0} for i in range(1, 4)]
    page = opened(write_report([write_run(tmp_path / "run", lines, {"seed": 0})]).path)
    charts = page.locator(".plot:not(.heat)").evaluate_all(
        """plots => plots.map((plot) => [...plot.querySelectorAll(".tick")].map((label) => (
          { text: label.textContent, inside: label.getBBox().x >= 0 })))"""
    )
    assert len(charts) == 2
    labels = [label for chart in charts for label in chart]
    assert all(label["inside"] for label in labels)
    assert any("·10" in label["text"] for label in labels)
    for chart in charts:
        assert [label["text"] for label in chart if label["text"] in ("1", "2", "3")] == ["1", "2", "3"]
        assert not {"1.5", "2.5"} & {label["text"] for label in chart}
    # A level has its line in the middle.
    line = page.locator(".chart", has=page.get_by_role("heading", name="Length", exact=True)).locator("path.line")
    assert 50 < line.evaluate("line => line.getBBox().y") < 110


def test_other_actions_are_listed_where_a_method_draws_them(tiny_model: Path, tmp_path: Path, opened: Opened) -> None:
    folder = real_run(tiny_model, tmp_path / "ca", "method={type: egspo_ca, num_selected: 1, num_actions: 6}")
    page = opened(write_report([folder]).path)
    rollout = SavedRollout.load(folder / "rollouts" / "step-00000002.safetensors").rollout
    assert rollout.trajectory.selected_steps is not None
    page.get_by_role("slider", name="Denoising step", exact=True).fill(
        str(int(rollout.trajectory.selected_steps[0, 0]))
    )
    rows = page.locator(".fills tbody tr")
    assert rollout.trajectory.branch_tokens is not None
    rows.first.wait_for()
    assert rows.count() == len({tuple(fill) for fill in rollout.trajectory.branch_tokens[0, 0].tolist()})
    times = [int(text.removesuffix("×")) for text in page.locator(".fills tbody td:nth-child(2)").all_text_contents()]
    assert sum(times) == 6


def test_a_comparison_shows_its_table_for_either_sampling(opened: Opened, tmp_path: Path) -> None:
    folder = RESULTS / "paper-tiny"
    page = opened(write_report([folder], tmp_path / "c.html").path)
    assert names_missing(page) == []
    table = (folder / "table.md").read_text()
    section = page.get_by_role("region", name="Table of sudoku")
    for row in section.locator("tbody").first.locator("tr").all():
        name, *cells = row.locator("th, td").all_text_contents()
        line = next(line for line in table.splitlines() if line.startswith(f"| {name} |"))
        # Both accuracies, seeds, token passes and reward calls, to the last digit; the interval has
        # no text.
        assert len(cells) == 7
        assert all(f" {cell} " in line.replace("**", " ") for cell in (*cells[:2], *cells[4:]))
        assert [f"**{cell}**" in line for cell in cells[:2]] == [
            "best" in (cell.get_attribute("class") or "") for cell in row.locator("td").all()[:2]
        ]
    assert section.locator("td.best").count() > 0
    marks = [cell.endswith(" *") for cell in section.locator("tbody").nth(1).locator("td").all_text_contents()]
    assert sum(marks) == table.count(" * |") > 0, "all marked differences are on Sudoku"
    assert page.get_by_role("region", name="Table of countdown").locator("td.best").count() == 0
    heading = page.get_by_role("heading", name="Accuracy against compute, sampled at 0.9").first
    assert heading.is_visible()
    pick(page, "Sampling", "greedy")
    assert page.get_by_role("heading", name="Accuracy against compute, greedy").first.is_visible()


def test_a_phone_shows_the_accuracies_of_a_comparison_without_scrolling(opened: Opened, tmp_path: Path) -> None:
    folder = RESULTS / "controls-tiny"
    page = opened(write_report([folder], tmp_path / "c.html").path, viewport={"width": 390, "height": 844})
    table = page.get_by_role("region", name="Table of sudoku").first
    heads = table.locator("thead th").all()
    assert [head.text_content() for head in heads] == [
        *("method", "sampled at 0.9", "greedy", "interval"),
        *("prompts × completions", "seeds", "token passes", "reward calls"),
    ]
    edge = table.bounding_box()["x"] + table.bounding_box()["width"]
    assert all(head.bounding_box()["x"] + head.bounding_box()["width"] <= edge + 1 for head in heads[:4])


def test_labels_of_denoising_steps_are_where_measurements_are(opened: Opened, tmp_path: Path) -> None:
    folder = RESULTS / "controls-tiny"
    page = opened(write_report([folder], tmp_path / "c.html").path, viewport={"width": 1280, "height": 720})
    chart = page.locator("figure.chart", has_text="Accuracy against denoising steps").first
    assert chart.locator("text.tick").all_text_contents()[-5:] == ["1", "1", "2", "4", "8"], "behind the 1 of the share"


def test_of_many_lines_the_six_that_end_highest_show_bands(opened: Opened, tmp_path: Path) -> None:
    folder = RESULTS / "paper-tiny"
    page = opened(write_report([folder], tmp_path / "c.html").path, viewport={"width": 1280, "height": 720})
    chart = page.locator("figure.chart").first
    bands = chart.locator(".band:visible")
    assert chart.locator("[data-series]").count() > 6
    assert bands.count() == 6
    # A line that is hidden makes room for the next one.
    chart.get_by_role("button", name="EGSPO-SA", exact=True).click()
    assert bands.count() == 6
    assert chart.locator("[data-series].off:not(.plain)").count() == 0


HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<b>bold</b> &amp; \"quoted\" 'q'",
    "\x00\x07\x1b[31mred\x7f",
    "abc\u202edcba\u2066\u200f",
    "مرحبا שלום",
    "\ud800 lone \udfff",
    "]]><!--",
    "${alert(1)}`",
    "\u2028\u2029\u200b\ufeff",
]


def test_hostile_texts_are_shown_as_text(opened: Opened, tmp_path: Path) -> None:
    prompt = "".join(HOSTILE)
    folder = hand_made(tmp_path / "run", [prompt], [HOSTILE, [*reversed(HOSTILE)]], model="<i>x</i>\u202e")
    page = opened(write_report([folder]).path, viewport={"width": 390, "height": 800})
    page.get_by_role("button", name="Finished completion").click()
    shown = page.evaluate(READ)["state"]
    # As it is, but for what cannot be seen: that is spelt out.
    spelt = {"\x00": "␀", "\x07": "␇", "\x1b": "␛", "\x7f": "␡"}
    spelt |= {c: f"⟨U+{ord(c):04X}⟩" for c in "\u202e\u2066\u200f\ud800\udfff\u2028\u2029\u200b\ufeff"}
    expected = ["".join(spelt.get(c, c) for c in text) for text in HOSTILE]
    assert shown == expected
    assert page.get_by_role("region", name="Prompt").text_content() == "".join(expected)
    assert page.locator("main img, main script, main b b, main i i").count() == 0
    assert page.locator("script").count() == 5
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert names_missing(page) == []


def test_very_long_texts_stay_inside_the_page(opened: Opened, tmp_path: Path) -> None:
    long = ["x" * 5000, "\n".join(str(i) for i in range(300)), "W" * 300, " ".join("word" for _ in range(400))]
    folder = hand_made(tmp_path / "run", ["p" * 30_000], [long, long], task={"type": "mbpp"})
    page = opened(write_report([folder]).path, viewport={"width": 390, "height": 800})
    page.get_by_role("button", name="Finished completion").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    first, second, *_ = page.evaluate(READ)["state"]
    assert first == long[0]
    assert second == long[1].replace("\n", "⏎\n")
    assert "10,000 more characters" in page.get_by_role("region", name="Prompt").text_content()


def test_a_script_that_gets_in_all_the_same_does_not_run(made: Made, browser: Any) -> None:
    page = browser.new_page()
    page.goto(made.page.as_uri())
    page.wait_for_selector("html[data-ready]", state="attached")
    page.evaluate(
        "() => { const s = document.createElement('script'); s.textContent = 'window.owned = 1'; document.body.append(s); }"
    )
    assert page.evaluate("window.owned") is None
    # Neither can anything be sent anywhere.
    assert page.evaluate("fetch('https://example.org/').then(() => 'sent', () => 'refused')") == "refused"
    page.close()
