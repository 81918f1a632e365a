"""Completions for mathematics problems that must earn nothing: wrong, malformed or hostile.

Each has the gold answer that it does not give, and the reason why it is wrong.
"""

from __future__ import annotations

from typing import NamedTuple


class Wrong(NamedTuple):
    """A completion that does not answer its problem."""

    kind: str
    gold: str
    completion: str


def _tagged(kind: str, gold: str, answers: str) -> list[Wrong]:
    return [Wrong(kind, gold, f"So it is\n<answer>{answer}</answer>") for answer in answers.split(" | ")]


def _boxed(kind: str, gold: str, answers: str) -> list[Wrong]:
    return [Wrong(kind, gold, f"<answer>\\boxed{{{answer}}}</answer>") for answer in answers.split(" | ")]


GSM8K: list[Wrong] = [
    *_tagged("another number", "18", "17 | 19 | -18 | 180 | 1.8 | 0.18 | 18.5 | 18.0001 | 1,8 | 1/18 | 81"),
    *_tagged("another number", "1000", "1,001 | 1.000 | 100 | 10,000 | 1e4 | 1 000 000"),
    *_tagged("another number", "-3", "3 | --3 | - -3 | 3- | (3)"),
    *_tagged("several numbers", "18", "17 or 18 | 18 or 19 | 18, 19 | 17 18 19 | 16-18 | 18 19 | <18> | 18;18"),
    *_tagged("not worked out", "18", "9 + 9 | 9*2 | 36/2 = 18 | 20 - 2 | 3^2*2 | 2(9) | \\sqrt{324} | 18 = 18"),
    *_tagged("no number", "18", " |   | x | None | nan | inf | 18x | x18 | 0x12 | ٣ | I | ?"),
    *_tagged("no number", "18", "the answer"),
    *_tagged("a sentence", "18", "not 18 | 18 is wrong | 18 minus 1 | 18 and a half | about 18 or so"),
    *_tagged("a sentence", "18", "less than 18"),
    *_tagged("another magnitude", "18", "18 hundred | 18 million | 18%% | 18 squared | 18! | 18\\pi | 18^2"),
    *_tagged("malformed", "18", "18/0 | 1 8 | 1,8, | +-18 | 18,000, | \\frac{18}{0} | \\frac{18}{}"),
    *_tagged("malformed", "18", "18} | {18"),
    Wrong("no tag", "18", "18"),
    Wrong("no tag", "18", "So she makes 18 dollars a day."),
    Wrong("no tag", "18", "The answer is 18. Wait, that is wrong."),
    Wrong("no tag", "18", "The answer is 17 and not 18."),
    Wrong("unclosed tag", "18", "</answer>18<answer>"),
    Wrong("unclosed tag", "18", "<answer>17</answer> or <answer>18 or 19"),
    Wrong("unclosed tag", "18", "She makes 9 * 2 = 18 dollars a day.</answer>"),
    Wrong("unclosed box", "18", "<answer>\\boxed{18</answer>"),
    Wrong("unclosed box", "18", "\\boxed{18 or 19"),
    Wrong("another tag", "18", "<ANSWER>18</ANSWER>"),
    Wrong("another tag", "18", "<answer >18</answer >"),
    Wrong("a box by its backspace", "18", "\boxed{18}"),
    Wrong("the last of two tags", "18", "<answer>18</answer> no, <answer>17</answer>"),
    Wrong("the last of two boxes", "18", "\\boxed{18} \\boxed{17}"),
    Wrong("a box beside the tag", "18", "\\boxed{18} <answer>17</answer>"),
    Wrong("nested tags", "18", "<answer>18<answer>17</answer></answer>"),
    Wrong("huge", "18", "<answer>" + "18 " * 50_000 + "</answer>"),
    Wrong("huge", "18", "<answer>" + "9" * 1_000_000 + "</answer>"),
    Wrong("huge", "18", "<answer>" * 100_000),
    Wrong("hostile", "18", "<answer>__import__('os').system('true') or 18</answer>"),
    Wrong("hostile", "18", "<answer>9**9**9**9</answer>"),
    Wrong("hostile", "18", "<answer>\0" + "18</answer>"),
    Wrong("hostile", "18", "<answer>18\ud800</answer>"),
]

MATH: list[Wrong] = [
    *_boxed("another value", "\\frac{1}{2}", "\\frac{1}{3} | -\\frac12 | 2 | 0.51 | 0.5000001 | \\frac{2}{1}"),
    *_boxed("another value", "2\\sqrt{5}", "5\\sqrt{2} | \\sqrt{10} | 2\\sqrt{-5} | 4.47 | 20 | \\sqrt{5}^2"),
    *_boxed("another value", "2\\sqrt{5}", "2\\sqrt5i"),
    *_boxed("another value", "\\pi", "3.14 | \\frac{22}{7} | 180^\\circ | 2\\pi | \\tau"),
    *_boxed("another expression", "p - q", "q - p | p + q | p | p - q - 1 | P/Q"),
    *_boxed("another expression", "8n^2 + 4n + 1", "8n^2 + 4n - 1 | 8m^2 + 4m + 1 | (2n+1)^2 | 8n^2 | 0 | n"),
    *_boxed("another variable", "y = 2x + 3", "x = 2y + 3 | z = 2x + 3 | y = 2x"),
    *_boxed("other brackets", "(3,4]", "[3,4] | (3,4) | [3,4) | (4,3] | 3 | (3,4"),
    *_boxed("another order", "(1,-16,-4,43)", "(-16,1,-4,43) | (43,-4,-16,1) | (1,-16,-4) | (1,-16,-4,43,0)"),
    *_boxed("not all, or too many", "3, 5, 7", "3 | 3, 5 | 3, 5, 7, 9 | 3, 5, 8 | 357"),
    *_boxed("not all, or too many", "1 \\pm \\sqrt{19}", "1 + \\sqrt{19} | 1 \\pm \\sqrt{17} | \\pm \\sqrt{19}"),
    *_boxed("several guesses", "5", "5 \\text{ or } 6 | 5, 6 | \\{4, 5, 6\\} | 4 < x < 6 | 5 = 6"),
    *_boxed("not worked out", "1250", "5^4 \\cdot 2 | 1000 + 250 | \\frac{2500}{1 + 1} | \\sum_{k=1}^{1250} 1"),
    *_boxed("not worked out", "1250", "1250 \\cdot 1"),
    *_boxed("other words", "\\text{Evelyn}", "\\text{Navin} | \\text{not Evelyn} | Eve | E"),
    *_boxed("other words", "\\text{Evelyn}", "\\text{Evelyn or Navin}"),
    *_boxed("other words", "\\text{even}", "\\text{odd} | \\text{uneven} | \\text{neither} | 2"),
    *_boxed("other words", "\\text{(B)}", "\\text{(C)} | B, C | \\text{(A)(B)} | \\text{not } B"),
    *_boxed("another base", "2516_8", "2516_7 | 1358_8 | 2516_{10} | 2517_8 | 8_{2516}"),
    *_boxed(
        "another matrix",
        "\\begin{pmatrix} -7 \\\\ 16 \\\\ 5 \\end{pmatrix}",
        "\\begin{pmatrix} -7 \\\\ 16 \\end{pmatrix}",
    ),
    *_boxed("malformed", "\\sqrt{51}", "\\sqrt{51 | \\sqrt | \\sqrt{} | \\ | { | } | \\frac"),
    *_boxed("malformed", "\\sqrt{51}", "\\frac{\\frac{\\frac | $$$"),
    *_boxed("empty", "\\sqrt{51}", " |   | \\text{} | \\ "),
    *_boxed("hostile", "\\sqrt{51}", r"9^{9^{9^{9^9}}} | 10^{10^{10}}! | \int\int\int x | \sum_{n=1}^{10^{12}} n"),
    *_boxed("hostile", "\\sqrt{51}", r"\lim_{x \to 0} \frac{\sin x^{x^x}}{x} | " + "((" * 400 + " | " + "x" * 900),
    *_boxed("hostile", "\\sqrt{51}", "{" * 300 + "1" + "}" * 300),
    Wrong("no tag and no box", "\\sqrt{51}", "So it comes to $\\sqrt{51}$."),
    Wrong("a box by its backspace", "\\sqrt{51}", "\boxed{\\sqrt{51}}"),
    Wrong("huge", "\\sqrt{51}", "\\boxed{" * 100_000),
    Wrong("huge", "\\sqrt{51}", "\\boxed{" + "1+" * 400_000 + "1}"),
]
