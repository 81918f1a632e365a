"""Requests and answers in the format of SGLang's `/generate`, which servers, clients and recorded
files share.

A request has token ids (`input_ids`) and `sampling_params`. With `return_step_maps`, an answer has
`output_ids` and, in `meta_info`, the step map: the denoising step that committed each output token,
counted from 1. The format is that of SGLang's native API and of its pull request 27943. Everything
that arrives in it counts as hostile: it is checked here, and a fault is a `FormatError` whose
message is a sentence about the value.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from unmask.core.config import SamplerConfig

MAX_ROWS = 2**16
"""Maximum number of prompts in a request."""
MAX_LENGTH = 2**17
"""Maximum number of tokens of a prompt or of a completion."""
MAX_TOKEN = 2**31 - 1
"""Largest token id that the format holds."""
LONGEST_QUOTE = 80
"""Maximum number of characters of a value that a message quotes."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "min_p": (0, None),
    "frequency_penalty": (0, None),
    "presence_penalty": (0, None),
    "repetition_penalty": (1, None),
    "min_new_tokens": (0, None),
    "n": (1, None),
    "logit_bias": (None, {}),
    "json_schema": (None,),
    "regex": (None,),
    "ebnf": (None,),
    "structural_tag": (None,),
    "custom_params": (None,),
}
"""Sampling parameters of SGLang that change the distribution of the tokens, with the values that do
not change it."""
WITHOUT_EFFECT = frozenset(
    {
        "stop",
        "stop_token_ids",
        "stop_regex",
        "ignore_eos",
        "skip_special_tokens",
        "spaces_between_special_tokens",
        "no_stop_trim",
        "sampling_seed",
        "stream_interval",
    }
)
"""Sampling parameters of SGLang that do not change the distribution of the tokens."""

Token = Annotated[int, Field(ge=0, le=MAX_TOKEN)]
Tokens = Annotated[list[Token], Field(max_length=MAX_LENGTH)]
ModelT = TypeVar("ModelT", bound=BaseModel)


class FormatError(ValueError):
    """A request or an answer that cannot be used. The message is a sentence that does not name its
    source."""


class Strict(BaseModel):
    """Base of the parts of the format: values are not converted, and names that are not part of it
    are kept apart."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow", use_attribute_docstrings=True)


class SamplingParams(Strict):
    """The sampling parameters of a request, with SGLang's names and defaults."""

    temperature: float = Field(1.0, ge=0, allow_inf_nan=False)
    """Temperature of the token distribution; 0 takes the most likely token."""
    top_k: int = Field(-1, ge=-1)
    """Number of most likely tokens that may be sampled; -1 allows all."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Probability mass of the smallest set of most likely tokens to sample from."""
    max_new_tokens: int = Field(128, ge=1, le=MAX_LENGTH)
    """Largest number of tokens of a completion."""

    @staticmethod
    def of(sampler: SamplerConfig) -> SamplingParams:
        """Return the parameters of sampler settings."""
        return SamplingParams(
            temperature=sampler.temperature,
            top_k=sampler.top_k or -1,
            top_p=sampler.top_p,
            max_new_tokens=sampler.max_completion_length,
        )

    def check(self) -> None:
        """Refuse parameters that change the distribution in a way that unmask does not score.

        Raises:
            FormatError: names the parameter.
        """
        for name, value in (self.model_extra or {}).items():
            if name in WITHOUT_EFFECT or value in NEUTRAL.get(name, ()):
                continue
            kind = "changes the distribution of the tokens" if name in NEUTRAL else "is not known"
            raise FormatError(
                f"sampling_params.{name} = {quoted(value)} {kind}, so the log-probabilities of such a rollout cannot be "
                "computed. Sample with temperature, top_k and top_p only."
            )

    def settings(self) -> dict[str, Any]:
        """Return the parameters as settings of a sampler."""
        top_k = 0 if self.top_k == -1 else self.top_k
        return {"temperature": self.temperature, "top_k": top_k, "top_p": self.top_p}


class FinishReason(Strict):
    """The reason why a completion ended."""

    type: str = ""
    """`stop`, `length` or `abort`."""
    matched: int | str | None = None
    """Token or text at which the completion stopped."""


class MetaInfo(Strict):
    """Facts about an answer."""

    id: str = ""
    """Name of the request that it answers, the `rid` of the request."""
    finish_reason: FinishReason | None = None
    """The reason why the completion ended."""
    weight_version: str | None = None
    """Version of the weights that sampled the completion."""
    step_maps: list[Any] | None = None
    """Denoising step that committed each output token, counted from 1 in each block of the
    completion. Steps count up only if they commit something. 0 stands for a token that was filled
    in after the end; only `unmask serve` writes it."""
    output_token_logprobs: list[Any] | None = None
    """For each output token its log-probability in nats, its id and its text or null."""
    blocks_from: Literal["completion"] | None = None
    """Place from which blocks are counted: `completion` in answers of `unmask serve`. Without it,
    blocks are counted from the start of the prompt."""


class Answer(Strict):
    """The answer to one prompt."""

    output_ids: Tokens
    """Tokens of the completion. They end with a whole block."""
    meta_info: MetaInfo
    """Facts about the answer."""
    text: str = ""
    """Text of the completion."""


class Request(Strict):
    """A request for completions."""

    input_ids: Tokens | list[Tokens] | None = None
    """Tokens of the prompt, or of each of several prompts."""
    text: str | list[str] | None = None
    """Text of the prompt, or of each of several prompts, in place of the tokens."""
    sampling_params: SamplingParams = SamplingParams()
    """Parameters of the sampler."""
    return_step_maps: bool | list[bool] = False
    """True to return the step maps."""
    return_logprob: bool | list[bool] = False
    """True to return the log-probabilities of the output tokens."""
    rid: str | list[str] | None = None
    """Name of the request, or of each of its prompts. The answer repeats it."""

    @property
    def is_batch(self) -> bool:
        """True if the request has a list of prompts, so that the answer is a list."""
        prompts = self.text if self.input_ids is None else self.input_ids
        return isinstance(prompts, list) and not (prompts and isinstance(prompts[0], int))

    @property
    def num_prompts(self) -> int:
        """Number of prompts."""
        prompts = self.text if self.input_ids is None else self.input_ids
        return len(prompts or ()) if self.is_batch else 1

    def prompts(self) -> list[list[int]]:
        """Return the tokens of each prompt.

        Raises:
            FormatError: the request has no token ids, or no prompt.
        """
        if self.input_ids is None:
            raise FormatError(
                "the request has no input_ids. Send the prompts as token ids: an engine may add tokens to a text."
            )
        prompts: Any = self.input_ids if self.is_batch else [self.input_ids]
        if not prompts or not all(prompts):
            raise FormatError("the request has no prompt, or an empty one. Give input_ids of at least one token.")
        return list(prompts)


def parsed(kind: type[ModelT], value: Any, name: str) -> ModelT:
    """Check a JSON value.

    Args:
        kind: class that describes the value.
        value: what `json.loads` returned.
        name: name of the value for messages, such as "request".

    Raises:
        FormatError: the value does not have this form.
    """
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        # Of a union, pydantic names the member too, such as `list[int]`.
        place = ".".join([name, *(str(part) for part in fault["loc"] if not str(part).startswith(("list[", "bool")))])
        if fault["type"] == "missing":
            raise FormatError(f"{place} is missing.") from error
        message = fault["msg"].removeprefix("Value error, ")
        raise FormatError(
            f"{place} = {quoted(fault['input'])}: {message[0].lower()}{message[1:].removesuffix('.')}."
        ) from error


def quoted(value: object, longest: int = LONGEST_QUOTE) -> str:
    """Return a value as a message quotes it, in at most `longest` characters and without control
    characters."""
    text = repr(value)
    return text if len(text) <= longest else f"{text[:longest]}..."
