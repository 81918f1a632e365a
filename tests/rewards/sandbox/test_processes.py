"""Programs in CPython: what tests can do with a program, and what it cannot do to its tests."""

from __future__ import annotations

import pytest

from unmask.rewards.sandbox import Sandbox, SandboxJob

pytestmark = pytest.mark.slow

POINT = """
class Point:
    def __init__(self, x):
        self.x = x
    def __eq__(self, other):
        return self.x == other.x
    def __add__(self, other):
        return Point(self.x + other.x)
    def __len__(self):
        return self.x
    def __iter__(self):
        return iter(range(self.x))
    def __str__(self):
        return f"Point({self.x})"
    def moved(self, by):
        self.x += by
        return self
class Unfit(ValueError):
    pass
def refuse():
    raise Unfit("no")
def apply(function, value):
    return function(value) + 1
def order(values):
    values.sort()
LIMIT = 7
"""
NAMES = ("Point", "Unfit", "refuse", "apply", "order", "LIMIT")


def status(sandbox: Sandbox, test: str, code: str = POINT, setup: str = "") -> str:
    result = sandbox.run_one(SandboxJob(code, (test,), NAMES, setup))
    return result.status


@pytest.mark.parametrize(
    "test",
    [
        "p = Point(1)\np.moved(2)\nassert p.x == 3 and str(p) == 'Point(3)'",
        "assert Point(2) == Point(2) and not Point(2) == Point(3) and Point(2) != Point(3)",
        "assert Point(2) + Point(3) == Point(5)",
        "assert len(Point(3)) == 3 and list(Point(3)) == [0, 1, 2]",
        "assert isinstance(Point(1), Point) and not isinstance(1, Point)",
        "p = Point(1)\np.x = 5\nassert p.x == 5",
        "try:\n    refuse()\n    assert False\nexcept Unfit as error:\n    assert str(error) == 'no'",
        "try:\n    refuse()\n    assert False\nexcept ValueError:\n    pass",
        "assert apply(lambda value: 2 * value, 4) == 9",
        "values = [3, 1, 2]\norder(values)\nassert values == [1, 2, 3]",
        "assert LIMIT == 7",
        "from solution import Point as P\nimport solution\nassert P(1) == solution.Point(1)",
        "import pytest\nwith pytest.raises(Unfit):\n    refuse()",
    ],
)
def test_tests_use_what_the_program_defines(cpython: Sandbox, test: str) -> None:
    setup = "import pytest" if "pytest" in test else ""
    assert status(cpython, test, setup=setup) == "passed"


@pytest.mark.parametrize(
    "test",
    [
        "assert Point(2) == 2",
        "assert 2 == Point(2)",
        "assert Point(2) in [1, 2]",
        "assert Point(2) - 2 == 0",
        "assert Point(2) < 3",
        "assert apply(lambda value: 2 * value, 4) == 8",
    ],
)
def test_an_object_of_the_program_is_not_plain_data(cpython: Sandbox, test: str) -> None:
    claims = "    def __eq__(self, other): return True\n    __sub__ = __lt__ = __eq__\n    __hash__ = None\n"
    code = POINT.replace("    def moved", claims + "    def moved")
    assert status(cpython, test, code) in ("failed", "error")


def test_a_parametrized_test_runs_for_each_set_of_arguments(cpython: Sandbox) -> None:
    setup = (
        "import pytest\nseen = []\n"
        "@pytest.mark.parametrize('x, y', [(1, 2), pytest.param(3, 4)])\n"
        "@pytest.mark.parametrize('z', [5, 6])\n"
        "def test_all(x, y, z):\n    seen.append((x, y, z))\n    assert x < {limit}\n"
    )
    all_four = "run_test(test_all)\nassert sorted(seen) == [(1, 2, 5), (1, 2, 6), (3, 4, 5), (3, 4, 6)]"
    assert status(cpython, all_four, setup=setup.format(limit=4)) == "passed"
    assert status(cpython, all_four, setup=setup.format(limit=3)) == "failed"


def test_a_module_that_is_not_there_is_unsupported_and_not_wrong(cpython: Sandbox) -> None:
    assert status(cpython, "1", "import no_such_module") == "unsupported"
    assert status(cpython, "apply(1, 2)", "def apply(f, x):\n    import no_such_module") == "unsupported"
    # A program that does not need the missing module is judged normally.
    code = "try:\n    import no_such_module\nexcept ImportError:\n    LIMIT = 1"
    assert status(cpython, "assert LIMIT == 1", code) == "passed"


def test_an_object_of_a_class_of_the_tests_cannot_be_sent_and_is_unsupported(cpython: Sandbox) -> None:
    setup = "class Node:\n    value = 1"
    code = "def apply(node):\n    return node.value"
    assert status(cpython, "assert apply(Node()) == 1", code, setup) == "unsupported"


def test_a_crash_loses_one_test_and_the_others_run_in_a_new_process(cpython: Sandbox) -> None:
    code = "import os\ndef order(x):\n    if x: os._exit(0)\n    return 5"
    job = SandboxJob(code, ("order(0)", "order(1)", "assert order(0) == 5", "assert order(0) == 6"), ("order",))
    assert [v.status for v in cpython.run_one(job).verdicts] == ["passed", "error", "passed", "failed"]


def test_a_program_is_not_the_main_module(cpython: Sandbox) -> None:
    code = "if __name__ == '__main__':\n    raise SystemExit\nLIMIT = 3"
    assert status(cpython, "assert LIMIT == 3", code) == "passed"


FORGED = """
import json, os, struct
def order(*values):
    data = json.dumps(REPLY).encode()
    for fileno in range(3, 64):
        try:
            os.write(fileno, struct.pack(">I", len(data)) + data)
        except OSError:
            pass
    while True:
        pass
"""


@pytest.mark.parametrize(
    ("reply", "test"),
    [
        ({"value": [], "changed": [[]]}, "data = [3, 1, 2]\nassert order(data) == sorted(data)"),
        ({"value": 7, "changed": [1, [7]]}, "want = [12345]\nassert [order(1, want)] == want"),
        ({"value": {"dict": []}, "changed": [{"dict": []}]}, "data = {1: 2}\nassert order(data) == dict(data)"),
    ],
)
def test_a_reply_with_a_value_changes_no_arguments(cpython: Sandbox, reply: object, test: str) -> None:
    assert status(cpython, test, FORGED.replace("REPLY", repr(reply))) == "failed"


def test_a_forged_reply_is_worth_what_the_same_value_is_worth(cpython: Sandbox) -> None:
    code = FORGED.replace("REPLY", repr({"value": 7}))
    assert status(cpython, "assert order() == 7", code) == "passed"
    assert status(cpython, "assert order() == 8", code) == "failed"


ARRAY = """
class Array:
    __array_interface__ = {"version": 3, "shape": (0, 1), "typestr": "<f8", "data": (0, True)}
def order(x):
    return Array()
"""


@pytest.mark.parametrize(
    "test",
    [
        "assert np.allclose(order(3), [1.5, 2.5])",
        "assert (np.array(order(3)) == [1.5, 2.5]).all()",
        "assert pytest.approx(5.0) == order(3)",
    ],
)
def test_numpy_takes_no_array_from_the_program(cpython: Sandbox, test: str) -> None:
    pytest.importorskip("numpy")
    assert status(cpython, test, ARRAY, "import pytest\nimport numpy as np") in ("failed", "error")


@pytest.mark.parametrize(
    "name", ["__array__", "__array_struct__", "__float__", "__buffer__", "__deepcopy__", "__bases__", "__no__"]
)
def test_names_of_protocols_are_not_answered(cpython: Sandbox, name: str) -> None:
    code = f"class Answer:\n    {name} = 5\ndef order():\n    return Answer()"
    assert status(cpython, f"assert not hasattr(order(), {name!r})", code) == "passed"
    assert (
        status(cpython, "assert order.__name__ == 'order' and order().real == 5", code.replace(name, "real"))
        == "passed"
    )


def test_the_program_does_not_choose_what_a_star_import_brings(cpython: Sandbox) -> None:
    code = "__all__ = ['order', 'all', 'abs']\ndef order(x):\n    return 0\nall = abs = lambda *a: 1"
    assert status(cpython, "from solution import *\nassert all(order(x) == 5 for x in [1])", code) == "failed"
    assert status(cpython, "from solution import *\nassert order(1) == 0", code) == "passed"


def test_a_machine_without_processes_says_nothing_about_the_program(
    cpython: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr("subprocess.Popen", full)
    assert status(cpython, "assert LIMIT == 7") == "unsupported"


LIAR = """
class Liar:
    def __len__(self):
        return 2
    def __iter__(self):
        return iter(ITEMS)
    __reversed__ = __iter__
def order():
    return Liar()
"""


@pytest.mark.parametrize(
    "test",
    [
        "r = order()\nassert len(r) == 2\nassert all(a == b for a, b in zip(r, [5, 6]))",
        "r = order()\nassert all(a == b for a, b in zip(r, [5, 6]))\nassert len(r) == 2",
        "r = order()\nassert len(r) == 2\nassert all(a == b for a, b in zip([5, 6], r))",
        "r = order()\nassert len(r) == 2\nassert all(a == b for a, b in zip(reversed(r), [5, 6]))",
    ],
)
def test_an_object_hands_out_as_many_items_as_it_says(cpython: Sandbox, test: str) -> None:
    assert status(cpython, test, LIAR.replace("ITEMS", "[]")) == "error"
    assert status(cpython, test, LIAR.replace("ITEMS", "[5, 6]")) == "passed"


def test_a_length_is_requested_again_after_a_call(cpython: Sandbox) -> None:
    code = "class Stack:\n    n = 0\n    def push(self):\n        self.n += 1\n    def __len__(self):\n        return self.n\n"
    code += "    def __iter__(self):\n        return iter(range(self.n))\ndef order():\n    return Stack()"
    test = "s = order()\nassert len(s) == 0 and list(s) == []\ns.push()\nassert list(s) == [0] and len(s) == 1"
    assert status(cpython, test, code) == "passed"


def test_a_generator_is_read_once(cpython: Sandbox) -> None:
    code = "def order():\n    yield from [1, 2]"
    assert status(cpython, "g = order()\nassert list(g) == [1, 2] and list(g) == []", code) == "passed"


def test_a_few_files_are_allowed_and_a_great_many_are_not(bubblewrap: Sandbox) -> None:
    code = "import os\ndef order(n):\n    for i in range(n):\n        open(f'/tmp/{i}', 'w').close()\n"
    code += "    return len(os.listdir('/tmp'))"
    assert status(bubblewrap, "assert order(500) == 500", code) == "passed"
    result = bubblewrap.run_one(SandboxJob(code, ("order(10**6)",), ("order",)))
    assert result.status == "error"
    assert "files" in result.verdicts[0].reason


USES = {
    "terminal": "import sys\n    return sys.stdout.isatty() is False",
    "text file": "open('/tmp/a', 'w').write('b')\n    return open('/tmp/a').read() == 'b'",
    "sqlite": "import sqlite3\n    return sqlite3.connect(':memory:').execute('select 1').fetchone() == (1,)",
    "pipe": "import os\n    r, w = os.pipe()\n    os.set_inheritable(r, True)\n    os.set_blocking(r, False)\n    return True",
    "threads": "from concurrent.futures import ThreadPoolExecutor as T\n    return list(T(4).map(abs, [-1])) == [1]",
}


@pytest.mark.parametrize("what", USES)
def test_the_filter_leaves_what_programs_use(bubblewrap: Sandbox, what: str) -> None:
    """Each program uses `ioctl`, `fcntl`, or another call that the filter restricts."""
    assert status(bubblewrap, "assert order()", f"def order():\n    {USES[what]}") == "passed"
