"""The program in what a model wrote, whatever is around it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.tasks.extract import MAX_CODE, code_in, continued

FENCED = "```python\ndef f(x):\n    return x\n```"
PROGRAM = "def f(x):\n    return x\n"


@pytest.mark.parametrize(
    ("text", "program"),
    [
        (PROGRAM, PROGRAM),
        (FENCED, PROGRAM),
        (f"Here:\n{FENCED}\nand that is it.", PROGRAM),
        (f"```\n{PROGRAM}```", PROGRAM),
        (f"``` py\n{PROGRAM}```", PROGRAM),
        (f"  ```python title=x\n{PROGRAM}  ```", PROGRAM),
        (f"```python\n{PROGRAM}", PROGRAM),  # the completion ran out of room
        (f"```bash\npip install x\n```\n{FENCED}", PROGRAM),
        (f"```python\nprint(f(1))\n```\n{FENCED}", PROGRAM),
        (f"{FENCED}\n```python\nprint(f(1))\n```", PROGRAM),
        ("```python\nprint(1)\n```\n```python\nprint(2)\n```", "print(1)\n"),
        (f"~~~py\n{PROGRAM}~~~", PROGRAM),
        (f"````python\n{PROGRAM}````", PROGRAM),
        ("```python\ndef f(x):\n    return x```", PROGRAM[:-1]),
        ("1. So:\n   ```python\n   def f(x):\n       return x\n   ```", PROGRAM),
        ("```python\nf(1)\n```\n```python\nclass f:\n    x = 1\n```", "class f:\n    x = 1\n"),
        ("```python\nf(1) == 2\n```\n```python\nf = abs\n```", "f = abs\n"),
        (f"Here it is:\n\n{PROGRAM}\nIt isn't hard.", PROGRAM),
        (
            "I'd import math:\nimport math\n\ndef f(\n    x,\n):\n    return x\n\n\nThat's it.",
            "import math\n\ndef f(\n    x,\n):\n    return x\n\n",
        ),
        ("I can't do it.", "I can't do it."),
        ("Use def f(x) for that.", "Use def f(x) for that."),
        ("```", ""),
        ("", ""),
    ],
)
def test_the_program_in_a_text(text: str, program: str) -> None:
    assert code_in(text, ["f"]) == program


@given(st.text(alphabet="`\n dpython:x()", max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_text_has_a_program_whose_lines_are_part_of_it(text: str) -> None:
    assert all(line in text for line in code_in(text, ["f"]).splitlines())


START = 'def f(x):\n    """Say."""\n'
BODY = "    if x:\n        return 1\n    return 2\n"


@pytest.mark.parametrize(
    "rest",
    [
        "",
        "\nThis isn't hard.",
        "\n\ndef test():\n    assert f(",
        "\nif __name__ == '__main__':\n    print(",
        "```\n\nSo it's done",
    ],
)
@pytest.mark.parametrize("is_exact", [False, True])
def test_a_body_ends_where_something_else_begins(rest: str, is_exact: bool) -> None:
    assert continued(START, BODY + rest, is_exact).rstrip("\n") == (START + BODY).rstrip("\n")


@pytest.mark.parametrize("body", [BODY.strip(), "if x:\n    return 1\nreturn 2", "if x:\n    return 1\nreturn 2\n\n\n"])
def test_a_body_without_its_indent_is_given_it_back_unless_it_continues_the_prompt_itself(body: str) -> None:
    assert continued(START, body, is_exact=False).rstrip("\n") == (START + BODY).rstrip("\n")
    assert continued(START, body, is_exact=True) == START + body


@given(st.text(alphabet="`~\n dpython:x()='#", max_size=MAX_CODE // 500))
@settings(max_examples=200, deadline=None)
def test_any_text_continues_a_prompt(text: str) -> None:
    assert continued(START, text, False).startswith(START)
