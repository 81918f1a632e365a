"""Take the pictures of the report in docs/images/, on a desktop and on a phone, light and dark.

    unmask demo && python -m benchmark.screenshots runs/demo/egspo_sa

The film fills one window, 1280x720 on the desktop and 390x844 on the phone. The command needs the
run folder of a Sudoku run, such as the demo's. The comparison comes from the results in this
repository.
"""

from __future__ import annotations

import argparse
import io
import shutil
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from unmask.report.build import write_report

IMAGES = Path(__file__).parents[1] / "docs" / "images"
COMPARISON = Path(__file__).parent / "results" / "long-answers"
LARGEST = 300_000
"""Maximum size of a picture in bytes."""

DESKTOP, PHONE = (1280, 720), (390, 844)


def save(picture: bytes, target: Path) -> None:
    """Write a PNG, with as few colours as keep it below `LARGEST` bytes."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image.save(target, optimize=True)
    for colours in (256, 128, 64, 32):
        if target.stat().st_size <= LARGEST:
            break
        image.quantize(colours, dither=Image.Dither.NONE).save(target, optimize=True)
    print(f"{target}  {image.width} x {image.height}  {target.stat().st_size / 1000:.0f} kB")


def clip(page: Any, first: str, last: str) -> bytes:
    """Take a picture from the top of one element to the bottom of another, as wide as the page."""
    box = page.evaluate(
        """([first, last]) => {
          const [a, b] = [first, last].map((name) => document.querySelector(name).getBoundingClientRect());
          return { top: a.top + scrollY, bottom: b.bottom + scrollY };
        }""",
        [first, last],
    )
    width = page.viewport_size["width"]
    area = {"x": 0, "y": box["top"] - 12, "width": width, "height": box["bottom"] - box["top"] + 24}
    picture: bytes = page.screenshot(full_page=True, clip=area)
    return picture


def open_report(browser: Any, report: Path, size: tuple[int, int], scheme: str, scale: float) -> Any:
    """Open a report and wait until it is drawn; its navigation bar scrolls, to cover no picture."""
    viewport = {"width": size[0], "height": size[1]}
    context = browser.new_context(
        viewport=viewport, color_scheme=scheme, device_scale_factor=scale, reduced_motion="reduce"
    )
    page = context.new_page()
    page.goto(report.as_uri())
    page.wait_for_selector("html[data-ready]", state="attached")
    page.evaluate("document.querySelector('nav').style.position = 'static'")
    return page


def show(page: Any, options: argparse.Namespace) -> bytes:
    """Show the chosen completion at the chosen step, and return the picture of the film's window.

    A number beyond the last one in the report means the last one.
    """
    rollouts = page.get_by_role("slider", name="Training step", exact=True)
    rollouts.fill(str(min(options.rollout - 1, int(rollouts.get_attribute("max")))))
    prompts = page.get_by_role("combobox", name="Prompt")
    prompts.select_option(index=min(options.prompt, prompts.locator("option").count()) - 1)
    members = page.get_by_role("group", name="Member of the group").get_by_role("radio")
    members.nth(min(options.member, members.count()) - 1).check()
    page.get_by_role("slider", name="Denoising step", exact=True).fill(str(options.step))
    page.mouse.move(0, 0)
    page.locator("nav a[href='#film']").click()
    page.evaluate("document.activeElement.blur()")
    page.wait_for_timeout(200)
    picture: bytes = page.screenshot()
    return picture


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder of a Sudoku run")
    parser.add_argument("--rollout", type=int, default=2, help="saved rollout, from 1")
    parser.add_argument("--prompt", type=int, default=2, help="prompt of the rollout, from 1")
    parser.add_argument("--member", type=int, default=2, help="completion of the prompt's group, from 1")
    parser.add_argument("--step", type=int, default=6, help="denoising step, from 0")
    parser.add_argument("--schemes", nargs="+", default=["light", "dark"])
    parser.add_argument("--output", type=Path, default=IMAGES)
    options = parser.parse_args(arguments)
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("Chromium was not found. Install it, for example with: apt-get install chromium")
    with tempfile.TemporaryDirectory() as work, sync_playwright() as playwright:
        report, compared = (
            write_report([folder], Path(work) / name).path
            for folder, name in ((options.run, "run.html"), (COMPARISON, "comparison.html"))
        )
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for scheme in options.schemes:
            desk = open_report(browser, report, DESKTOP, scheme, 1.5)
            save(show(desk, options), options.output / f"report-film-{scheme}.png")
            save(clip(desk, "#run", "#run .times"), options.output / f"report-run-{scheme}.png")
            phone = open_report(browser, report, PHONE, scheme, 2)
            save(show(phone, options), options.output / f"report-phone-{scheme}.png")
            other = open_report(browser, compared, DESKTOP, scheme, 1.5)
            save(clip(other, "#comparison-0", ".task .scroll"), options.output / f"report-comparison-{scheme}.png")
        browser.close()


if __name__ == "__main__":
    main()
