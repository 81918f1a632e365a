"""The contract of reward functions: TRL's signature, what a function may say about itself, and what its values must be."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import math
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar, cast

from unmask.core.by_path import load_callable
from unmask.core.errors import RewardError
from unmask.core.timeouts import TimeLimitError

RewardFunc = Callable[..., Any]
"""f(prompts, completions, **columns) -> list[float | None], sync or async; None where the function does not apply. A function
without `**columns` receives the arguments that it names."""

MOST_OF_ERROR = 500
"""Characters of what an exception says that a message repeats; some hold a whole completion or table."""

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


class Score(float):
    """A reward that comes with the reason for it, such as "unparsed"; a plain float to code that does not ask for the reason.

    The share of completions with each reason that a function `reports` is logged as `rewards/{name}/{reason}`.

    Example:
        >>> score = Score(0.0, "unparsed")
        >>> score + 1, score.reason
        (1.0, 'unparsed')
    """

    reason: str

    def __new__(cls, value: float, reason: str) -> Score:
        score = super().__new__(cls, value)
        score.reason = reason
        return score


def reports(*reasons: str) -> Callable[[FunctionT], FunctionT]:
    """Decorate a reward function with the reasons that its `Score`s may have; each is logged in every step.

    Example:
        >>> @reports("unparsed")
        ... def right(completions, answer, **_):
        ...     return [Score(0.0, "unparsed") if not text else float(text == a) for text, a in zip(completions, answer)]
        >>> reasons_of(right)
        ('unparsed',)
    """

    def mark(function: FunctionT) -> FunctionT:
        function.__dict__["reasons"] = reasons
        return function

    return mark


def per_completion(function: FunctionT) -> FunctionT:
    """Decorate a reward function that judges each completion by itself, whatever other completions are in the call.

    Methods that also score unfinished completions need this declaration. It also allows scoring equal texts of a row once and
    splitting a call between processes. A function that compares the completions of a prompt must not have it.

    Setting the attribute has the same effect: `function.per_completion = True`.

    Example:
        >>> @per_completion
        ... def short(completions, **columns):
        ...     return [-len(text) for text in completions]
        >>> judges_each(short), judges_each(max)
        (True, False)
    """
    function.__dict__["per_completion"] = True
    return function


def judges_each(function: RewardFunc) -> bool:
    """Whether a function declares that it judges each completion by itself."""
    return bool(getattr(_marked(function), "per_completion", False))


def reasons_of(function: RewardFunc) -> tuple[str, ...]:
    """The reasons that a function reports; empty for a function that declares none."""
    return tuple(getattr(_marked(function), "reasons", ()))


def parameters_of(function: RewardFunc) -> Mapping[str, inspect.Parameter]:
    """The parameters of a function by name; `**columns` for a callable that does not tell them, such as some in C.

    Example:
        >>> list(parameters_of(lambda prompts, completions: [])), list(parameters_of(type))
        (['prompts', 'completions'], ['columns'])
    """
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {"columns": inspect.Parameter("columns", inspect.Parameter.VAR_KEYWORD)}


def _marked(function: RewardFunc) -> RewardFunc:
    """The function that carries the declarations: `functools.partial` does not pass attributes on."""
    while isinstance(function, partial):
        function = function.func
    return function


def name_of(function: RewardFunc) -> str:
    """The name under which the mean of a function is logged."""
    return str(getattr(_marked(function), "__name__", type(function).__name__))


def completion_for(prompt: object, text: str) -> Any:
    """A completion in the form that TRL gives to rewards: an assistant's message where the prompt is a list of messages.

    Example:
        >>> completion_for("2+2=", "4"), completion_for([{"role": "user", "content": "2+2?"}], "4")
        ('4', [{'role': 'assistant', 'content': '4'}])
    """
    return [{"role": "assistant", "content": text}] if isinstance(prompt, list) else text


def text_of(completion: object) -> str:
    """The text of a completion in either form; empty for anything else.

    Example:
        >>> text_of("4"), text_of([{"role": "assistant", "content": "4"}]), text_of(None)
        ('4', '4', '')
    """
    if isinstance(completion, list) and completion and isinstance(completion[-1], Mapping):
        completion = completion[-1].get("content")
    return completion if isinstance(completion, str) else ""


def reads_text(function: FunctionT) -> FunctionT:
    """Decorate a reward function that judges the text of each completion by itself, so that it also takes assistant messages.

    Example:
        >>> @reads_text
        ... def length(completions, **columns):
        ...     return [len(text) for text in completions]
        >>> length(["four", [{"role": "assistant", "content": "five!"}]]), judges_each(length)
        ([4, 5], True)
    """

    @wraps(function)
    def of_texts(completions: Sequence[Any], *arguments: Any, **columns: Any) -> Any:
        return function([text_of(completion) for completion in completions], *arguments, **columns)

    return cast(FunctionT, per_completion(of_texts))


def call_reward(name: str, function: RewardFunc, arguments: Mapping[str, Any]) -> list[float | None]:
    """Call a function, await it if it is asynchronous, and convert what it returns.

    Everything that a function may compute late happens here, so that a time limit around this call covers it: coroutines,
    generators, and the conversion of lazy values to numbers.

    Args:
        name: for messages.
        function: sync or async.
        arguments: with `completions`, or any other column, to count the values by.

    Raises:
        RewardError: the function raised, or did not return one number or None for each completion.
    """
    # A copy: the function may change its arguments.
    completions = list(arguments.get("completions", next(iter(arguments.values()), [])))
    try:
        value = function(**arguments)
        value = _result_of(value) if inspect.isawaitable(value) else value
        return _numbers(name, value, completions)
    except (KeyboardInterrupt, TimeLimitError, RewardError):
        raise
    except BaseException as error:  # SystemExit and CancelledError of a function end no run
        raise raised(name, function, error) from error


def raised(name: str, function: RewardFunc, error: BaseException) -> RewardError:
    """The error for people of a reward function that raised: what it raised, and where."""
    try:
        text = str(error)
    except Exception:  # the text of an exception is its author's code
        text = ""
    text = f": {text[:MOST_OF_ERROR]}{' ...' if len(text) > MOST_OF_ERROR else ''}" if text else ""
    return RewardError(f'reward function "{name}" raised {type(error).__name__}{text} ({_place_of(function, error)})')


def _place_of(function: RewardFunc, error: BaseException) -> str:
    """File and line of an error: in the function's own file rather than in a library that it calls."""
    frames = traceback.extract_tb(error.__traceback__)
    file = getattr(getattr(_marked(function), "__code__", None), "co_filename", None)
    frame = ([frame for frame in frames if frame.filename == file] or frames)[-1]
    return f"{Path(frame.filename).name}, line {frame.lineno}"


def _result_of(awaitable: Any) -> Any:
    """What an awaitable returns, also where an event loop is already running, as in a notebook."""

    async def wait() -> Any:
        return await awaitable

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(wait())
    # A second loop may run in a thread of its own.
    results: SimpleQueue[tuple[bool, Any]] = SimpleQueue()
    context = contextvars.copy_context()

    def run() -> None:
        try:
            results.put((True, context.run(asyncio.run, wait())))
        except BaseException as error:
            results.put((False, error))

    threading.Thread(target=run, daemon=True).start()
    succeeded, value = results.get()
    if not succeeded:
        raise value
    return value


def _numbers(name: str, value: Any, completions: Sequence[Any]) -> list[float | None]:
    """The rewards as floats; raises a RewardError that says what is wrong with them."""
    try:
        # A set or a mapping has no order that could be that of the completions.
        if isinstance(value, str | bytes | set | frozenset | Mapping):
            raise TypeError
        iterator = iter(value)
    except TypeError:
        raise RewardError(f'reward function "{name}" returned {type(value).__name__}; it must return a list.') from None
    # One more than is needed, so that an endless generator ends as a wrong count.
    values = list(islice(iterator, len(completions) + 1))
    if len(values) != len(completions):
        is_endless = len(values) > len(completions) and not hasattr(value, "__len__")
        count = (
            f"more than {len(completions)}"
            if is_endless
            else f"{len(value) if hasattr(value, '__len__') else len(values)}"
        )
        raise RewardError(
            f'reward function "{name}" returned {count} rewards for {len(completions)} completions; '
            "it must return one for each."
        )
    return [_number(name, reward, completion) for reward, completion in zip(values, completions, strict=True)]


def _number(name: str, reward: Any, completion: object) -> float | None:
    text = text_of(completion)[:80]
    try:
        number = reward if reward is None or isinstance(reward, Score) else float(reward)
    except (TypeError, ValueError, OverflowError):
        raise RewardError(
            f'reward function "{name}" returned {_shown(reward)} for the completion {text!r}; '
            "each reward must be a number or None."
        ) from None
    if number is not None and not math.isfinite(number):
        raise RewardError(f'reward function "{name}" returned {number} for the completion {text!r}.')
    return number


def _shown(value: object) -> str:
    """A value, as far as an error message has room for it; Python refuses to write very long integers."""
    try:
        return repr(value)[:80]
    except ValueError:
        return f"a {type(value).__name__} too long to write"


def load_reward(path: str) -> tuple[str, RewardFunc]:
    """Load the function at `package.module:function` or `file.py:function`, and return it after its name.

    Raises:
        ConfigError: there is no callable object at this path, or its file cannot be executed.
    """
    return path.rpartition(":")[2], load_callable(path, "reward function")
