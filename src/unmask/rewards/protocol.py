"""The contract of reward functions: TRL's signature, declarations, and permitted return values."""

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
"""Type of a reward function: f(prompts, completions, **columns) -> list[float | None], sync or
async.

None means that the function does not apply to a completion. A function without `**columns` receives
only the arguments that it names."""

MOST_OF_ERROR = 500
"""Number of characters of an exception's text that a message repeats. Some texts hold a whole
completion."""

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


class Score(float):
    """A reward with a reason, such as "unparsed".

    A score is a float, so code that ignores the reason can use it as one.

    If the function declares the reason (see `reports`), the share of completions with this reason
    is logged as `rewards/{name}/{reason}`.

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
    """Declare the reasons that the `Score`s of a reward function may have, so that training logs
    how often each occurs.

    Every training step logs each of these reasons.

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
    """Declare that a reward function judges each completion independently of the others.

    Methods that also score unfinished completions require this declaration. The declaration also
    allows the trainer to score equal texts of an example once and to split a call between
    processes. A function that compares the completions of a prompt must not have it.

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
    """Return True if a function declares that it judges each completion independently."""
    return bool(getattr(_marked(function), "per_completion", False))


def reasons_of(function: RewardFunc) -> tuple[str, ...]:
    """Return the reasons that a function declares; an empty tuple if it declares none."""
    return tuple(getattr(_marked(function), "reasons", ()))


def parameters_of(function: RewardFunc) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a function by name.

    Some callables that are written in C have no readable signature. They count as functions that
    take `**columns`.

    Example:
        >>> list(parameters_of(lambda prompts, completions: [])), list(parameters_of(type))
        (['prompts', 'completions'], ['columns'])
    """
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {"columns": inspect.Parameter("columns", inspect.Parameter.VAR_KEYWORD)}


def _marked(function: RewardFunc) -> RewardFunc:
    """Return the function that carries the declarations, which a `functools.partial` does not."""
    while isinstance(function, partial):
        function = function.func
    return function


def name_of(function: RewardFunc) -> str:
    """Return the name under which the mean reward of a function is logged."""
    return str(getattr(_marked(function), "__name__", type(function).__name__))


def completion_for(prompt: object, text: str) -> Any:
    """Return a completion in TRL's form: an assistant message if the prompt is a list of messages.

    Example:
        >>> completion_for("2+2=", "4"), completion_for([{"role": "user", "content": "2+2?"}], "4")
        ('4', [{'role': 'assistant', 'content': '4'}])
    """
    return [{"role": "assistant", "content": text}] if isinstance(prompt, list) else text


def text_of(completion: object) -> str:
    """Return the text of a completion, a string or a list of messages; "" for anything else.

    Example:
        >>> text_of("4"), text_of([{"role": "assistant", "content": "4"}]), text_of(None)
        ('4', '4', '')
    """
    if isinstance(completion, list) and completion and isinstance(completion[-1], Mapping):
        completion = completion[-1].get("content")
    return completion if isinstance(completion, str) else ""


def reads_text(function: FunctionT) -> FunctionT:
    """Let a reward function of texts also take assistant messages, and declare it `per_completion`.

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
    """Call a reward function, await the result if it is asynchronous, and convert it to floats.

    Coroutines, generators and lazy values are evaluated here, so a time limit around this call
    covers them.

    Args:
        name: name of the function in error messages.
        function: sync or async reward function.
        arguments: keyword arguments. The number of rewards must be the length of `completions`, or
            of any other column if the function does not take `completions`.

    Raises:
        RewardError: the function raised, or did not return one number or None for each completion.
    """
    # The function may change its arguments.
    completions = list(arguments.get("completions", next(iter(arguments.values()), [])))
    try:
        value = function(**arguments)
        value = _result_of(value) if inspect.isawaitable(value) else value
        return _numbers(name, value, completions)
    except (KeyboardInterrupt, TimeLimitError, RewardError):
        raise
    except BaseException as error:  # SystemExit or CancelledError in a reward function must not end the run.
        raise reward_error(name, function, error) from error


def reward_error(name: str, function: RewardFunc, error: BaseException) -> RewardError:
    """Return the error that shows the user the text and line of a reward function's exception."""
    try:
        text = str(error)
    except Exception:  # The exception's `__str__` may be user code.
        text = ""
    text = f": {text[:MOST_OF_ERROR]}{' ...' if len(text) > MOST_OF_ERROR else ''}" if text else ""
    return RewardError(f'reward function "{name}" raised {type(error).__name__}{text} ({_origin(function, error)})')


def _origin(function: RewardFunc, error: BaseException) -> str:
    """Return file and line of an exception, in the function's own file if possible."""
    frames = traceback.extract_tb(error.__traceback__)
    file = getattr(getattr(_marked(function), "__code__", None), "co_filename", None)
    frame = ([frame for frame in frames if frame.filename == file] or frames)[-1]
    return f"{Path(frame.filename).name}, line {frame.lineno}"


def _result_of(awaitable: Any) -> Any:
    """Return the result of an awaitable, even inside a running event loop, as in a notebook."""

    async def wait() -> Any:
        return await awaitable

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(wait())
    # This thread already runs an event loop, so another thread runs the second one.
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
    """Convert rewards to floats; raise a RewardError if their type, number or values are wrong."""
    try:
        # Sets and mappings have no order that could match the completions.
        if isinstance(value, str | bytes | set | frozenset | Mapping):
            raise TypeError
        iterator = iter(value)
    except TypeError:
        raise RewardError(f'reward function "{name}" returned {type(value).__name__}; it must return a list.') from None
    # Read one value too many, so that an endless generator stops and is reported as a wrong count.
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
    """Return a value as text for an error message, even an integer that is too long for Python to
    print."""
    try:
        return repr(value)[:80]
    except ValueError:
        return f"a {type(value).__name__} too long to print"


def load_reward(path: str) -> tuple[str, RewardFunc]:
    """Load the function at `package.module:function` or `file.py:function`, and return its name and
    the function.

    Raises:
        ConfigError: there is no callable object at this path, or its file cannot be executed.
    """
    return path.rpartition(":")[2], load_callable(path, "reward function")
