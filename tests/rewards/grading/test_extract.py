"""Extraction of the program from a completion, whatever text is around it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.rewards.grading.extract import code_in, continued
from unmask.rewards.grading.syntax import MAX_CODE, without_dead_code

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
def test_a_body_ends_at_the_first_other_text(rest: str, is_exact: bool) -> None:
    assert continued(START, BODY + rest, is_exact).rstrip("\n") == (START + BODY).rstrip("\n")


@pytest.mark.parametrize("body", [BODY.strip(), "if x:\n    return 1\nreturn 2", "if x:\n    return 1\nreturn 2\n\n\n"])
def test_a_body_without_its_indent_is_given_it_back_unless_it_continues_the_prompt_itself(body: str) -> None:
    assert continued(START, body, is_exact=False).rstrip("\n") == (START + BODY).rstrip("\n")
    assert continued(START, body, is_exact=True) == START + body


@given(st.text(alphabet="`~\n dpython:x()='#", max_size=MAX_CODE // 500))
@settings(max_examples=200, deadline=None)
def test_any_text_continues_a_prompt(text: str) -> None:
    assert continued(START, text, False).startswith(START)


# --- forms of real models: the extracted program is run ---

ADD = "def add(a, b):\n    return a + b\n"
WRAPPED = {
    "one line": ("```python def add(a, b): return a + b```"),
    "one line nolang": ("```def add(a, b): return a + b```"),
    "one line in prose": ("The code is ```python def add(a, b): return a + b``` and that is it."),
    "fence line code": (f"```python {ADD}```"),
    "fence line code2": (f"```{ADD}```"),
    "prose then fence same line": (f"Answer: ```python\n{ADD}```"),
    "lang left": (f"python\n{ADD}"),
    "lang left2": (f"<answer>python\n{ADD}</answer>"),
    "Lang colon": (f"Python:\n{ADD}"),
    "lang inline": ("python def add(a, b): return a + b"),
    "py3": (f"```\npython\n{ADD}```"),
    "indented": ("    def add(a, b):\n        return a + b\n"),
    "md indented": ("Here is the code:\n\n    def add(a, b):\n        return a + b\n\nDone. It isn't hard."),
    "indented in fence": ("```python\n    def add(a, b):\n        return a + b\n```"),
    "indented tag": ("<answer>\n    def add(a, b):\n        return a + b\n</answer>"),
    "docstring fence": (
        "```python\n"
        "def add(a, b):\n"
        '    """Add.\n'
        "\n"
        "    ```python\n"
        "    add(1, 2)\n"
        "    ```\n"
        '    """\n'
        "    return a + b\n"
        "```\n"
        "Done"
    ),
    "docstring fence unindented": (
        "```python\ndef add(a, b):\n    '''Add.\n```\nadd(1, 2)\n```\n    '''\n    return a + b\n```\nDone"
    ),
    "tag words": (f"I put the code between <answer> and </answer> tags.\n```python\n{ADD}```"),
    "tag words after": (f"<answer>\n```python\n{ADD}```\n</answer>\nThe code is between <answer> and </answer>."),
    "empty tag after": (f"<answer>\n{ADD}</answer> <answer></answer>"),
    "think draft": (f"<think>\n```python\ndef add(a, b):\n    return a - b\n```\nno wait</think>\n```python\n{ADD}```"),
    "think draft2": (f"<think>\ndef add(a, b):\n    return a - b\nno wait</think>\n{ADD}"),
    "corrected": (f"```python\ndef add(a, b):\n    return a - b\n```\nThat is wrong. Corrected:\n```python\n{ADD}```"),
    "helper": (
        "```python\n"
        "def helper(a, b):\n"
        "    return a + b\n"
        "```\n"
        "and\n"
        "```python\n"
        "def add(a, b):\n"
        "    return helper(a, b)\n"
        "```"
    ),
    "helper after": (
        "```python\n"
        "def add(a, b):\n"
        "    return helper(a, b)\n"
        "```\n"
        "with\n"
        "```python\n"
        "def helper(a, b):\n"
        "    return a + b\n"
        "print(helper(1,2))\n"
        "```"
    ),
    "helper chain": (
        "```python\n"
        "import operator\n"
        "```\n"
        "```python\n"
        "def h2(a,b):\n"
        "    return operator.add(a,b)\n"
        "```\n"
        "```python\n"
        "def add(a, b):\n"
        "    return h1(a, b)\n"
        "```\n"
        "with\n"
        "```python\n"
        "h1 = lambda a, b: h2(a,b)\n"
        "print(input())\n"
        "```"
    ),
    "cut": (f"```python\n{ADD}\nprint(add(1,"),
    "cut2": (f"```python\n{ADD}\nprint(add(1,\n```"),
    "cut3": (
        "```python\ndef add(a, b):\n    return helper(a, b)\n\ndef helper(a, b):\n    return a + b\n\nprint(add(1,"
    ),
    "cut string": (f'```python\n{ADD}\nassert add(1, 2) == 3, "it is'),
    "cut behind examples": (
        '```python\ndef add(a, b):\n    """\n    >>> add(1, 2)\n    3\n    """\n    return a + b\n\n'
        "def test_add():\n    assert add(1,"
    ),
    "cut print behind examples": (
        '<answer>\ndef add(a, b):\n    """\n    >>> add(1, 2)\n    3\n    """\n    return a + b\n\nprint(add(1, 2'
    ),
    "quoted": ("> Here it is:\n> ```python\n" + "\n".join(f"> {line}" for line in ADD.splitlines()) + "\n> ```"),
    "session in prose": ("Here it is:\n>>> def add(a, b):\n...     return a + b\n...\n>>> add(1, 2)\n3"),
    "cut def": (f"```python\n{ADD}\n\ndef test_add():\n    assert add(1,"),
    "closing only": (f"{ADD}```"),
    "closing only2": (f"{ADD}```\nThis function adds."),
    "closing only3": (f"Here is the code:\n{ADD}```\nThis isn't hard."),
    "eot": (f"```python\n{ADD}```<|eot_id|><|endoftext|>"),
    "eot2": (f"{ADD}<|im_end|>\n<|im_start|>user"),
    "eot3": (f"{ADD}</s>"),
    "session": (">>> def add(a, b):\n...     return a + b\n...\n>>> add(1, 2)\n3"),
    "nbsp": ("def add(a, b):\n\xa0\xa0\xa0\xa0return a + b"),
    "quotes": ("def add(a, b):\n    “Add.”\n    return a + b"),
    "tilde": (f"~~~\n{ADD}~~~"),
    "inline tick": ("`def add(a, b): return a + b`"),
    "usage after": (f"```python\n{ADD}```\nUsage:\n```python\nresult = add(2, 3)\nprint(result)\n```"),
    "stub after": (f"```python\n{ADD}```\nSignature:\n```python\ndef add(a, b):\n    ...\n```"),
    "stub before": (f'```python\ndef add(a, b):\n    """Add."""\n```\n```python\n{ADD}```'),
    "prose with tag unclosed": (f"<answer>\n```python\n{ADD}```"),
    "prose in tag": (f"<answer>Here is the function:\n{ADD}\nIt's easy.</answer>"),
    "Time": (f"Here is it:\n{ADD}\nTime = O(n)\nIt's fast."),
    "global": (
        "Sure, here's the code:\nCACHE = {}\n\ndef add(a, b):\n    CACHE[a] = b\n    return a + b\n\nLet's see."
    ),
    "pre": (f"<pre><code>{ADD}</code></pre>"),
    "crlf": ("```python\r\ndef add(a, b):\r\n    return a + b\r\n```"),
    "fence title": (f"```python title=add.py\n{ADD}```"),
    "fence brace": (f"```{{.python}}\n{ADD}```"),
    "decorator prose": (
        f"Here's it:\n@staticmethod\ndef unused(): pass\n@__import__('functools').lru_cache\n{ADD}It's done"
    ),
    "multiline string": (f"Here's it:\nTEXT = '''\nsome\nunindented\n'''\n{ADD}It's done"),
    "if main": (f"{ADD}\nif __name__ == '__main__':\n    import sys\n    print(add(int(sys.argv[1]), 2))"),
    "misplaced fences": (f"{ADD}```\nExplanation\n```python\nprint(add(1, 2))\n```"),
    "cut answer": (f"<answer>\n```python\n{ADD}\n# Test\nprint(add(1, 2"),
    "reasoning": (f"<reasoning>\nWe add.\n</reasoning>\n<answer>\n{ADD}\n</answer>"),
    "double tick": (f"``python\n{ADD}``"),
    "triple quotes": (f"'''python\n{ADD}'''"),
    "triple quotes2": (f'"""python\n{ADD}"""'),
    "tag inside fence": (f"```python\n<answer>\n{ADD}</answer>\n```"),
    "class answer": ("```python\nclass A:\n    pass\n```\n```python\ndef add(a, b):\n    A()\n    return a + b\n```"),
    "html": ("def add(a, b):\n    if a &lt; b: return a + b\n    return b + a"),
    "answer colon": (f"Answer:\n{ADD}"),
    "first line prose def": (f"The function def add is below.\n{ADD}"),
    "output after": (f"```python\n{ADD}print(add(1,2))\n```\nOutput:\n```\n3\n```"),
    "comment only fence": (f"```python\n# solution\n```\n{ADD}"),
    "two answers": (f"<answer>def add(a, b): return a - b</answer> wait <answer>{ADD}</answer>"),
    "close only tag": (f"{ADD}</answer>"),
    "lone open fence at end": (f"```python\n{ADD}``"),
    "bold": (f"**Solution:**\n\n{ADD}\n**Explanation:** it's good"),
    "tabs": ("```python\n\tdef add(a, b):\n\t\treturn a + b\n```"),
    "list fence": ("- Code:\n  ```python\n  def add(a, b):\n      return a + b\n  ```"),
}


@pytest.mark.parametrize("text", WRAPPED.values(), ids=WRAPPED.keys())
def test_a_right_program_is_not_lost_to_its_wrapping(text: str) -> None:
    space: dict[str, Any] = {}
    exec(without_dead_code(code_in(text, ["add"]), ["add"]), space)
    assert space["add"](2, 3) == 5


WRONG = {
    "taken back": (f"```python\n{ADD}```\nActually:\n```python\ndef add(a, b):\n    return a - b\n```"),
    "tag wins": (f"```python\n{ADD}```\n<answer>pass</answer>"),
    "tag wins2": (f"{ADD}<answer>def add(a, b): return a - b</answer>"),
    "think only": (f"<think>```python\n{ADD}```</think>\n```python\ndef add(a, b): return 0\n```"),
}


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG.keys())
def test_what_the_answer_replaces_is_not_taken(text: str) -> None:
    space: dict[str, Any] = {}
    exec(code_in(text, ["add"]), space)
    assert "add" not in space or space["add"](2, 3) != 5


@pytest.mark.slow
@pytest.mark.parametrize(
    "piece", ["```\n", "`", "` ", "```python\ndef f(x):\n", "class of\n'''\n", "x = [\n", "<answer>", "<pre>", ">>> "]
)
def test_a_piece_repeated_many_times_gives_no_more_code_than_the_text(piece: str) -> None:
    # A quadratic search would run for hours.
    text = piece * (400_000 // len(piece))
    assert set(code_in(text, ["f"])) <= set(text)
    assert len(code_in(text, ["f"])) <= len(text)
