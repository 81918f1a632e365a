"""Names that a program defines and imports, and code that is removed before it runs."""

from __future__ import annotations

import pytest

from unmask.rewards.grading.extract import code_in
from unmask.rewards.grading.syntax import without_dead_code
from unmask.tasks.program import function_of_x

F = "def f(x):\n    return x"


@pytest.mark.parametrize(
    ("code", "kept"),
    [
        (f"import numpy as np\n{F}", F),
        (f"import numpy\nfrom scipy import stats as st, special\n{F}", F),
        (f"import a.b.c\n{F}", F),
        ("def f(x):\n    import torch\n    return x", "def f(x):\n    pass\n    return x"),
        (
            f"try:\n    import numpy as np\nexcept ImportError:\n    pass\n{F}",
            f"try:\n    pass\nexcept ImportError:\n    pass\n\n{F}",
        ),
        (f"{F}\nif __name__ == '__main__':\n    import pandas\n    print(f(pandas.x))", F),
        (
            "from math import sqrt, pi\ndef f(x):\n    return sqrt(x)",
            "from math import sqrt\n\ndef f(x):\n    return sqrt(x)",
        ),
    ],
)
def test_imports_that_are_not_used_are_removed(code: str, kept: str) -> None:
    assert without_dead_code(code) == kept


@pytest.mark.parametrize(
    "code",
    [
        F,
        "import math\ndef f(x):\n    return math.sqrt(x)",
        "from math import *\ndef f(x):\n    return sqrt(x)",
        "from __future__ import annotations\n" + F,
        "import math\ndef f(x):\n    return eval('math.sqrt(x)')",
        "import math\n__all__ = ['math']",
        "no Python",
        "import collections.abc\nX = collections.abc.Mapping",
    ],
)
def test_a_program_that_uses_all_of_its_imports_stays_as_it_is(code: str) -> None:
    assert without_dead_code(code) == code


def test_an_import_that_the_tests_call_stays() -> None:
    assert without_dead_code("from math import gcd", ["gcd"]) == "from math import gcd"


@pytest.mark.parametrize("text", ["-3" * 659, "return x" + "+1" * 700])
def test_a_program_that_is_too_deep_is_refused(text: str) -> None:
    assert function_of_x(text) is None
    assert code_in(f"```python\nimport os\ndef f(x):\n    {text}\n```", ["f"]) == "import os"
    assert without_dead_code(f"import os\n{text}") == f"import os\n{text}"


@pytest.mark.parametrize("text", ["[" * 90 + "x" + "]" * 90, "f(" * 80 + ")" * 80])
def test_a_program_that_is_nested_within_the_limit_is_read(text: str) -> None:
    assert function_of_x(text) == f"def f(x):\n    return {text}"
    program = f"import os\ndef f(x):\n    {text}"
    assert code_in(f"```python\n{program}\n```", ["f"]).rstrip() == program
    assert without_dead_code(f"import os\n{text}") == text
