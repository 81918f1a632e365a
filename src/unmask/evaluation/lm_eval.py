"""A denoiser as a model for lm-evaluation-harness, so that the harness can run its tasks on it.
This module needs the package extra `lm-eval`.

    unmask harness --model_args pretrained=FOLDER,length=256 --tasks gsm8k

A masked diffusion model has no exact log-likelihood. `loglikelihood` is an estimate of the ELBO of
the continuation given its context, over masks whose numbers of positions are evenly spread. The
ELBO is a lower bound of the log-likelihood in nats, and its gap differs between continuations. The
random seed of a request is a hash of the request, so its result does not depend on other requests.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unmask.core.errors import ConfigError, DataError, reason
from unmask.core.timeouts import interrupted_after
from unmask.functional.elbo import elbo_weight, masks_of_counts, stratified_counts
from unmask.functional.noise import named_generator
from unmask.models import Denoiser, Policy, load_model
from unmask.models.device import default_device
from unmask.recipes.load import make_sampler
from unmask.sampling import denoise
from unmask.sampling.encoding import ENCODING_SECONDS, decode, left_pad, row_seeds
from unmask.sampling.engine import BatchLimits, LocalEngine
from unmask.sampling.predict import predict

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError as error:
    raise ConfigError('the harness needs the package lm-eval. Install it: pip install "unmask[lm-eval]"') from error

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@register_model("unmask")
class DenoiserLM(LM):  # type: ignore[misc]  # the package ships no types
    """A denoiser with the interface of the harness.

    Args:
        pretrained: folder or hub id of a masked diffusion model.
        length: completion length in tokens, if a task does not set `max_gen_toks`.
        steps: number of denoising steps; default half the length.
        block_length: block length in tokens; default the completion length (a single block).
        order: remasking strategy, as in `sampler.order`.
        schedule: schedule, as in `sampler.schedule`; an adaptive one takes `steps` as an upper limit.
        cache: approximate cache of keys and values, as in `sampler.cache`.
        num_draws: number of masks in an ELBO estimate, whose standard error falls with the square
            root of this number or faster.
        seed: seed of the masks and the sampling.
        batch_size: number of sequences in one forward.
        device: torch device; default a GPU if there is one.
    """

    def __init__(
        self,
        pretrained: str,
        length: int = 256,
        steps: int | None = None,
        block_length: int | None = None,
        order: str = "low_confidence",
        schedule: str = "fixed",
        cache: str = "off",
        num_draws: int = 128,
        seed: int = 0,
        batch_size: int | str = 32,
        device: str | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        # The harness passes max_batch_size to every model.
        if unknown := {key: value for key, value in unknown.items() if key != "max_batch_size"}:
            raise ConfigError(
                f"unknown model_args: {', '.join(sorted(unknown))}. Available: pretrained, length, steps, block_length, order, "
                "schedule, cache, num_draws, seed."
            )
        if num_draws < 1:
            raise ConfigError(f"num_draws = {num_draws} is less than 1. Set it to 1 or more.")
        if str(device).startswith("cuda") and not torch.cuda.is_available():
            raise ConfigError(f"this machine has no device {device}. Use --device cpu.")
        self.length, self.steps, self.block_length, self.order, self.cache = length, steps, block_length, order, cache
        self.schedule = schedule
        self.num_draws, self.seed = num_draws, seed
        self.batch_size = int(batch_size) if str(batch_size).isdigit() else 32
        self.pretrained = pretrained
        self.denoiser: Denoiser
        self.tokenizer: PreTrainedTokenizerBase
        self._device = torch.device(device or default_device())
        self.denoiser, self.tokenizer = load_model(pretrained, device=self._device)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return for each (context, continuation) the ELBO in nats, and whether greedy denoising
        generates it.

        Greedy denoising commits one token in each step.

        Raises:
            DataError: if the tokenizer cannot encode a text, or a continuation is longer than the
                maximum length of the model.
        """
        pairs = [self._tokens(*request.args) for request in requests]
        bounds = [self.elbo(context, continuation) for context, continuation in pairs]
        greedy = self._is_greedy(pairs)
        for request, result in zip(requests, zip(bounds, greedy, strict=True), strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, result)
        return list(zip(bounds, greedy, strict=True))

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the ELBO of each whole text in nats. A long text is divided into windows of the
        model's length, each with as much context as fits."""
        limit = getattr(self.denoiser.backbone.config, "max_position_embeddings", None)
        results = []
        for request in requests:
            ids = self._encode(request.args[0])
            # Half of a window is context for the other half; without this context, the first tokens
            # of a window would be predicted from nothing.
            stride = len(ids) if limit is None or len(ids) <= limit else limit // 2
            starts = range(0, len(ids), stride or 1)
            results.append(sum(self.elbo(ids[:start], ids[start : start + stride]) for start in starts))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, results[-1])
        return results

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return a completion of each (context, settings), up to the first stop text.

        `max_gen_toks` is the completion length. With `do_sample`, tokens are sampled with
        `temperature`, `top_k` and `top_p`; without it, decoding is greedy.
        """
        indices: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            indices.setdefault(str(sorted(request.args[1].items())), []).append(i)
        texts = [""] * len(requests)
        for same in indices.values():
            settings = requests[same[0]].args[1]
            contexts = [requests[i].args[0] for i in same]
            engine = LocalEngine(Policy(self.denoiser, self.tokenizer), BatchLimits(self.batch_size))
            path = engine.rollout(contexts, self._sampler(settings), self._seeds(contexts))
            for i, text in zip(same, decode(self.tokenizer, path.tokens), strict=True):
                texts[i] = _cut(text, settings.get("until") or [])
                self.cache_hook.add_partial("generate_until", requests[i].args, texts[i])
        return texts

    @torch.no_grad()
    def elbo(self, context: list[int], continuation: list[int]) -> float:
        """Return an unbiased estimate, in nats, of the ELBO of a continuation given a context. Both
        are token ids.

        The ELBO is E_l E_{|S| = l} (n/l) Σ_S log p with l ~ U{1..n}. For a single token there is
        only one mask, so the value is exact.

        Raises:
            ConfigError: if the model is block-causal, because this ELBO is not a bound for such
                models.
            DataError: if the continuation alone is longer than the maximum length of the model.
        """
        if self.denoiser.block_length is not None:
            raise ConfigError(
                f"{self.pretrained} is block-causal, but this ELBO holds only for models with full attention. "
                "Run tasks that generate text (output_type: generate_until)."
            )
        count = len(continuation)
        if not count:
            return 0.0
        generator = named_generator(self.seed, "elbo", str(context), str(continuation))
        is_maskable = torch.ones(1, count, dtype=torch.bool)
        draws = 1 if count == 1 else self.num_draws
        counts = stratified_counts(torch.tensor([count]), draws, 1, generator)
        masks = masks_of_counts(counts, is_maskable, generator)
        weights = elbo_weight(masks, is_maskable, coupled=False)[0].double()
        prompt = torch.tensor(self._fitted(context, count), dtype=torch.long)
        target = torch.tensor(continuation)
        total = 0.0
        for start in range(0, draws, self.batch_size):
            block = masks[0, start : start + self.batch_size]
            logprob = self._logprob(prompt, target, block)
            total += float((weights[start : start + self.batch_size] * logprob.masked_fill(~block, 0.0).sum(-1)).sum())
        return total / draws

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return chat messages as text in the tokenizer's template."""
        try:
            with interrupted_after(ENCODING_SECONDS, "its chat template does not finish"):
                return str(
                    self.tokenizer.apply_chat_template(
                        chat_history,
                        tokenize=False,
                        add_generation_prompt=add_generation_prompt,
                        continue_final_message=not add_generation_prompt,
                    )
                )
        except Exception as error:  # a template can raise any exception
            raise DataError(f"the chat template of {self.pretrained} cannot be used: {reason(error)}.") from error

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer in the harness's cache of requests."""
        return self.pretrained.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the text of the chat template, which the harness records."""
        return str(self.tokenizer.chat_template or "")

    def _logprob(self, prompt: Tensor, target: Tensor, masks: Tensor) -> Tensor:
        """Return the log-probability [M, n] float64 of each target token if the positions in
        `masks` [M, n] are masked."""
        target = target.expand(len(masks), -1)
        prompt = prompt.expand(len(masks), -1).to(self._device)
        hidden = target.masked_fill(masks, self.denoiser.mask_id).to(self._device)
        positions = torch.arange(target.shape[1], device=self._device).expand(len(masks), -1)
        is_there = torch.ones_like(prompt, dtype=torch.bool)
        logits = predict(self.denoiser, prompt, is_there, hidden, positions, self.denoiser.mask_id).logits
        logprob: Tensor = logits.double().log_softmax(-1).cpu().gather(-1, target.unsqueeze(-1)).squeeze(-1)
        return logprob

    def _is_greedy(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[bool]:
        """Return for each pair whether greedy denoising, one token in each step, gives the
        continuation."""
        by_count: dict[int, list[int]] = {}
        for i, (_, continuation) in enumerate(pairs):
            by_count.setdefault(len(continuation), []).append(i)
        verdicts = [True] * len(pairs)
        for count, indices in by_count.items():
            for start in range(0, len(indices) if count else 0, self.batch_size):
                block = indices[start : start + self.batch_size]
                completions = self._greedy([pairs[i][0] for i in block], count)
                for i, tokens in zip(block, completions, strict=True):
                    verdicts[i] = tokens == pairs[i][1]
        return verdicts

    def _greedy(self, contexts: Sequence[list[int]], count: int) -> list[list[int]]:
        sampler = make_sampler(max_completion_length=count, num_steps=count, temperature=0.0, order=self.order)
        ids, is_there = left_pad([self._fitted(context, count) for context in contexts], self.denoiser.pad_id)
        seeds = self._seeds([str(context) for context in contexts]).to(self._device)
        path = denoise(self.denoiser, ids.to(self._device), is_there.to(self._device), sampler, seeds)
        tokens: list[list[int]] = path.tokens.tolist()
        return tokens

    def _sampler(self, settings: dict[str, Any]) -> Any:
        temperature = float(settings.get("temperature") or 1.0) if settings.get("do_sample") else 0.0
        support = {key: settings[key] for key in ("top_k", "top_p") if temperature and settings.get(key)}
        return make_sampler(
            max_completion_length=int(settings.get("max_gen_toks") or self.length),
            num_steps=self.steps,
            block_length=self.block_length,
            order=self.order,
            schedule=self.schedule,
            cache=self.cache,
            temperature=temperature,
            **support,
        )

    def _seeds(self, contexts: Sequence[str]) -> Tensor:
        """Return seeds [B] int64. Each is a hash of the context and of the number of its earlier
        occurrences, so that repeated contexts get different seeds."""
        seen: dict[str, int] = {}

        def seeds() -> Iterator[Tensor]:
            for context in contexts:
                seen[context] = repeat = seen.get(context, -1) + 1
                yield row_seeds(1, named_generator(self.seed, "harness", context, repeat))

        return torch.cat(list(seeds()))

    def _tokens(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Return both texts as token ids. White space at the end of the context is moved to the
        continuation."""
        whole, prefix = self._encode(context + continuation), self._encode(context.rstrip())
        return prefix, whole[len(prefix) :]

    def _encode(self, text: str) -> list[int]:
        try:
            ids: list[int] = list(self.tokenizer(text, add_special_tokens=False).input_ids)
        except Exception as error:  # tokenizers raise plain Exceptions
            raise DataError(f"the tokenizer cannot encode {text[:80]!r} ({str(error).splitlines()[0]}).") from error
        return ids

    def _fitted(self, context: list[int], count: int) -> list[int]:
        """Return as much of the end of the context as fits before `count` tokens."""
        limit = getattr(self.denoiser.backbone.config, "max_position_embeddings", None)
        if limit is None:
            return context
        if count > limit:
            raise DataError(f"a continuation of {count} tokens does not fit into the model's {limit} positions.")
        return context[max(0, len(context) + count - limit) :]


def _cut(text: str, until: str | Sequence[str]) -> str:
    """Return the text before the first stop text."""
    stops = [until] if isinstance(until, str) else until
    return text[: min([start for stop in stops if stop and (start := text.find(stop)) >= 0], default=len(text))]


def run(arguments: Sequence[str]) -> None:
    """Run the command `lm_eval run` with this model, on the device that the other commands use.

    Without `--device` the harness always takes a CUDA GPU.
    """
    from lm_eval.__main__ import cli_evaluate

    # The file of --config can name a device too.
    is_chosen = any(argument.partition("=")[0] in ("--device", "--config", "-C") for argument in arguments)
    device = [] if is_chosen else ["--device", default_device()]
    sys.argv = ["lm_eval", "run", "--model", "unmask", *device, *arguments]
    cli_evaluate()
