"""Programs from examples: find an expression in x that fits the examples. The reward comes from
running the expression on other inputs.

The task comes from no paper. It is the smallest task whose reward comes from running code. Its
expressions are short, so that a tiny character model can learn it in a minute.
"""

from __future__ import annotations

import ast
import random
import re
import textwrap
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from unmask.rewards.grading.answers import before_end, tagged_answer
from unmask.rewards.grading.boxes import last_boxed
from unmask.rewards.grading.extract import code_in, fenced_blocks
from unmask.rewards.grading.notation import ANNOUNCED, symbols
from unmask.rewards.grading.syntax import parse
from unmask.rewards.grading.wrapping import unwrapped
from unmask.rewards.sandbox import SandboxJob
from unmask.tasks.base import Split, stable_hash
from unmask.tasks.code import ProgramTask

if TYPE_CHECKING:
    from unmask.core.records import Row

SHOWN = (0, 1, 2, 10)
"""Inputs of the examples in the prompt. The values at 0 and 10 show the constants of a linear
expression; the other values distinguish it from expressions of other shapes."""
HIDDEN = (-3, 3, 4, 5, 6, 9)
"""Inputs on which the reward is computed."""
MAX_EXPRESSION, MAX_PROGRAM = 100, 2000
"""Maximum length in characters of a bare answer, and of an answer with words or statements around
the expression."""
_HEAD = re.compile(r"(?:[A-Za-z]\w{0,15}\s?(?:\(\s?x\s?\))?\s?(?:=(?!=)|:(?!=)|->)|x\s?(?:->|=>|↦|\|->)|=)\s?")
"""Text before the expression in "f(x) = 3*x+2", "y: 3*x+2" or "x -> 3*x+2"."""
_PRODUCT = re.compile(r"(?<=[0-9)])\s?(?=[x(])|(?<=(?<![a-z])x)\s?(?=\()")
_FUNCTION = re.compile(r"\\{1,2}(?=(?:max|min)\b)")
_SIGNS = str.maketrans(
    dict.fromkeys("×·⋅∗＊", "*")
    | dict.fromkeys("−–－", "-")
    | {"÷": "/", "²": "**2", "³": "**3", "＋": "+", "（": "(", "）": ")", "\u00a0": " "}
)


class Shape(NamedTuple):
    """Family of expressions that differ only in two constants."""

    pattern: str
    """Text of the expressions, with placeholders for the constants."""
    compute: Callable[[int, int, int], int]
    """Function of x, a and b that returns the value."""
    a: Sequence[int] = range(1, 10)
    b: Sequence[int] = (0,)


SHAPES = (
    Shape("{a}*x+{b}", lambda x, a, b: a * x + b, range(2, 10), range(10)),
    Shape("{a}*x-{b}", lambda x, a, b: a * x - b, range(2, 10), range(1, 10)),
    Shape("{b}-{a}*x", lambda x, a, b: b - a * x, range(2, 10), range(10)),
    Shape("x**2+{a}", lambda x, a, _: x**2 + a, range(10)),
    Shape("x**2-{a}", lambda x, a, _: x**2 - a),
    Shape("max(x,{a})", lambda x, a, _: max(x, a)),
    Shape("min(x,{a})", lambda x, a, _: min(x, a)),
)
"""The grammar of the expressions."""


class Item(NamedTuple):
    """One expression of the grammar."""

    text: str
    shown: tuple[int, ...]
    """Values of the expression at `SHOWN`."""
    hidden: tuple[int, ...]
    """Values of the expression at `HIDDEN`."""


class ProgramFromExamples(ProgramTask):
    """Expressions such as 3*x+2, x**2-1 and max(x,4). Splits share no expression.

    Bare prompt: the examples, such as "0:+002,1:+005,2:+008,10:+032=". Completion: the expression.
    The reward is the share of six other inputs on which it gives the correct number, run in the
    sandbox. Every shape is equally likely.
    """

    type: Literal["program"] = "program"

    reward_columns: ClassVar[tuple[str, ...]] = ("hidden",)

    @property
    def completion_length(self) -> int:
        """Number of characters of the longest expression, plus 1 for EOS."""
        return 9

    @property
    def alphabet(self) -> str:
        return "".join(sorted(set("0123456789:,=+-*()xmaxmin")))

    def row(self, split: Split, index: int, seed: int) -> Row:
        rng = self._rng(split, index, seed)
        item = rng.choice(rng.choice(expressions()[split]))
        shown = [[x, y] for x, y in zip(SHOWN, item.shown, strict=True)]
        hidden = [[x, y] for x, y in zip(HIDDEN, item.hidden, strict=True)]
        bare = ",".join(f"{x}:{y:+04d}" for x, y in shown) + "="
        return {
            "prompt": self._prompt(bare, _instruction(shown)),
            "answer": item.text,
            "examples": shown,
            "hidden": hidden,
        }

    def demonstration(self, row: Row, rng: random.Random, sloppy: bool) -> str:
        """Return the expression. If `sloppy`, return a linear expression with a random slope that
        fits the first example."""
        if not sloppy:
            return str(row["answer"])
        constant = dict(row["examples"])[0]
        return f"{rng.randint(2, 9)}*x{constant:+d}"

    def job(self, answer: str, row: Row) -> SandboxJob | None:
        """Return the answer as a function of x, with an assertion for each hidden input; None if
        the answer is not an expression."""
        program = _bare_program(answer) if self.format == "bare" else function_of_x(answer)
        if program is None:
            return None
        tests = tuple(f"assert f({x}) == {y}" for x, y in row["hidden"])
        return SandboxJob(program, tests, ("f",))

    def _answer(self, completion: str) -> str | None:
        """Return the text of the last answer tag, or else of a box, of an announcement such as "the
        answer is", or of the last code fence."""
        if self.format == "bare":
            return super()._answer(completion)
        tagged = tagged_answer(completion)
        boxed = last_boxed(tagged or before_end(completion))
        if boxed is None and tagged is not None:
            return tagged
        answer = super()._answer(completion)
        if answer is None:
            return next(reversed(fenced_blocks(before_end(completion))), None)
        return f"${answer}$" if answer == boxed else answer


def function_of_x(answer: str) -> str | None:
    r"""Return a program that defines f(x), from an answer with one expression in x.

    The answer may be only an expression, `return 3*x+2`, `y = 3*x+2`, `f(x) = 3*x+2`, a lambda, a
    whole function of any name, or statements that end in one of these. Each may be in a fence, in
    backticks or after "The answer is". Text between dollar signs is read as mathematics, so that
    `$3x+2$` and `$x^2$` have their usual meaning.

    Args:
        answer: any text.

    Returns:
        The program; None if the answer is not valid Python, has more than one expression ("3*x+2 or
        2*x"), or is too long.

    Example:
        >>> function_of_x("y = 3*x+2"), function_of_x("$3x+2$"), function_of_x("3x+2")
        ('def f(x):\n    return 3 * x + 2', 'def f(x):\n    return 3 * x + 2', None)
    """
    if len(answer) > MAX_PROGRAM:
        return None
    text = answer.strip()
    if announced := ANNOUNCED.match(text):
        text = text[announced.end() :]
    if _is_mathematics(text):
        text = _as_python(symbols(text))
    elif "\n" not in text and "```" not in text:
        text = unwrapped(text).translate(_SIGNS)
    whole = _program_in(text)
    if whole is not None and "def " in code_in(text):
        return whole
    # If there are several expressions, the last one counts, because a correction comes after a
    # draft.
    programs = [program for block in fenced_blocks(text) if (program := _program_in(block)) is not None]
    return next((program for program in reversed(programs) if _reads_x(program)), whole)


def _program_in(block: str) -> str | None:
    """Return a block of text as the definition of f. A beginning such as "y =", "f(x) =" or "f: x
    ->" is removed if necessary."""
    block = code_in(block).strip()
    for _ in range(3):
        if (tree := parse(block)) is not None and (program := _program(tree)) is not None:
            return program
        block = _HEAD.sub("", block, count=1)
    return None


def _reads_x(program: str) -> bool:
    """Return True if the function in a program reads its argument.

    A line such as f(2), which only calls another function, does not read the argument.
    """
    nodes = list(ast.walk(ast.parse(program)))
    arguments = {node.arg for node in nodes if isinstance(node, ast.arg)}
    return any(isinstance(node, ast.Name) and node.id in arguments for node in nodes)


def _program(tree: ast.Module) -> str | None:
    """Return a module as the definition of f: its last function, its body, or its last value."""
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    if functions:
        renamed = "" if functions[-1] == "f" else f"\nf = {functions[-1]}"
        return ast.unparse(ast.Module([node for node in tree.body if not isinstance(node, ast.Expr)], [])) + renamed
    *before, last = tree.body or [ast.Pass()]
    match last:
        case ast.Expr(value=ast.Call(func=ast.Name("print"), args=[value], keywords=[])):
            pass
        case ast.Expr(value=value) | ast.Return(value=ast.expr() as value):
            pass
        case (
            ast.Assign(targets=[ast.Name()], value=value) | ast.AnnAssign(target=ast.Name(), value=ast.expr() as value)
        ):
            pass
        case ast.If():
            return _with_body(tree.body)
        case _:
            return None
    if isinstance(value, ast.Lambda):
        return ast.unparse(ast.Module([*before, ast.Assign([ast.Name("f", ast.Store())], value, lineno=1)], []))
    if isinstance(value, ast.BoolOp):  # "3*x+2 or 2*x" gives two answers.
        return None
    return _with_body([*before, ast.Return(value)])


def _with_body(statements: list[ast.stmt]) -> str:
    return "def f(x):\n" + textwrap.indent(ast.unparse(ast.Module(statements, [])), "    ")


def _bare_program(answer: str) -> str | None:
    return f"def f(x):\n    return ({answer})\n" if _is_expression(answer) else None


def _is_mathematics(text: str) -> bool:
    """Return True if a text is written as mathematics: between dollars or with LaTeX."""
    return text.startswith(("$", "\\(", "\\[")) or "\\" in text


def _as_python(text: str) -> str:
    """Return a formula in x as Python: powers, functions, and implicit products."""
    return _PRODUCT.sub("*", _FUNCTION.sub("", text.replace("^", "**")))


@lru_cache(maxsize=1)
def expressions() -> dict[Split, tuple[tuple[Item, ...], ...]]:
    """Return the expressions of each split, by shape.

    The grammar's expressions are included only if the shown examples distinguish them from all
    others. In the order of a stable hash, a fifth of each shape is for test, a tenth for
    validation, and the rest for train.

    Example:
        >>> {split: sum(map(len, shapes)) for split, shapes in expressions().items()}
        {'train': 187, 'validation': 27, 'test': 55}
    """
    shapes = [[_item(shape, a, b) for a in shape.a for b in shape.b] for shape in SHAPES]
    meanings: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    for item in (item for shape in shapes for item in shape):
        meanings.setdefault(item.shown, set()).add(item.hidden)
    found: dict[Split, list[tuple[Item, ...]]] = {"train": [], "validation": [], "test": []}
    for shape in shapes:
        clear = [item for item in shape if len(meanings[item.shown]) == 1]
        clear.sort(key=lambda item: stable_hash(f"program {item.text}"))
        test = -(-len(clear) // 5)
        held_out = test + max(1, len(clear) // 10)
        found["test"].append(tuple(clear[:test]))
        found["validation"].append(tuple(clear[test:held_out]))
        found["train"].append(tuple(clear[held_out:]))
    return {split: tuple(of_split) for split, of_split in found.items()}


def _item(shape: Shape, a: int, b: int) -> Item:
    shown, hidden = (tuple(shape.compute(x, a, b) for x in inputs) for inputs in (SHOWN, HIDDEN))
    return Item(shape.pattern.format(a=a, b=b), shown, hidden)


def _is_expression(text: str) -> bool:
    """Return True if a text is one Python expression of reasonable length."""
    if len(text) > MAX_EXPRESSION or "\n" in text or "\r" in text or "#" in text:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(text, mode="eval")
    # CPython raises one of these errors for deep nesting; which one depends on the version and the
    # depth.
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    return True


def _instruction(shown: list[list[int]]) -> str:
    examples = "\n".join(f"x = {x}: {y}" for x, y in shown)
    return (
        "Find a Python expression in x that gives these values.\n\n"
        f"{examples}\n\n"
        "It is short: a one-digit number or two, and +, -, *, **, max or min. It is tested on other values of x. "
        "Think as long as you need, then write the expression alone between <answer> and </answer>."
    )
