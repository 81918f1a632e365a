"""A denoiser as a model of lm-evaluation-harness, so that its tasks can be run on one; the extra `lm-eval`.

    unmask harness --model_args pretrained=FOLDER,length=256 --tasks gsm8k

A masked diffusion model has no exact log-likelihood. `loglikelihood` is the ELBO of the continuation given its context,
estimated with masks of evenly spread counts: a lower bound, in nats, whose gap differs between continuations. Everything that
is drawn for a request is a hash of the request, so a result does not depend on what else is asked.
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
from unmask.recipes.schema import make_sampler
from unmask.sampling import denoise
from unmask.sampling.engine import BatchLimits, LocalEngine
from unmask.sampling.generation import ENCODING_SECONDS, decode, left_pad, row_seeds
from unmask.sampling.predict import predict

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError as error:
    raise ConfigError('this needs the package lm-eval: pip install "unmask[lm-eval]"') from error

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@register_model("unmask")
class DenoiserLM(LM):  # type: ignore[misc]  # the package ships no types
    """A denoiser behind the harness's interface.

    Args:
        pretrained: folder or hub id of a masked diffusion model.
        length: completion positions, where a task does not set `max_gen_toks`.
        steps: denoising steps; default half the length.
        block_length: default one block.
        order: in which positions are committed.
        num_draws: masks of an ELBO estimate; its standard error falls with their square root or faster.
        seed: of masks and of sampling.
        batch_size: rows of one forward.
        device: default a GPU if there is one.
    """

    def __init__(
        self,
        pretrained: str,
        length: int = 256,
        steps: int | None = None,
        block_length: int | None = None,
        order: str = "low_confidence",
        num_draws: int = 128,
        seed: int = 0,
        batch_size: int | str = 32,
        device: str | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        # What the harness passes to every model.
        if unknown := {key: value for key, value in unknown.items() if key != "max_batch_size"}:
            raise ConfigError(f"model_args {', '.join(sorted(unknown))} are not known to the model unmask.")
        if num_draws < 1:
            raise ConfigError(f"num_draws = {num_draws} must be at least 1.")
        if str(device).startswith("cuda") and not torch.cuda.is_available():
            raise ConfigError(f"there is no {device} on this machine. Give --device cpu.")
        self.length, self.steps, self.block_length, self.order = length, steps, block_length, order
        self.num_draws, self.seed = num_draws, seed
        self.batch_size = int(batch_size) if str(batch_size).isdigit() else 32
        self.pretrained = pretrained
        self.denoiser: Denoiser
        self.tokenizer: PreTrainedTokenizerBase
        self.denoiser, self.tokenizer = load_model(pretrained)
        self._device = torch.device(device or default_device())
        self.denoiser.to(self._device)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """For each (context, continuation) its ELBO in nats, and whether greedy denoising, a token a step, gives it.

        Raises:
            DataError: a text that the tokenizer does not know, or a continuation longer than the model.
        """
        pairs = [self._tokens(*request.args) for request in requests]
        bounds = [self.elbo(context, continuation) for context, continuation in pairs]
        greedy = self._is_greedy(pairs)
        for request, result in zip(requests, zip(bounds, greedy, strict=True), strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, result)
        return list(zip(bounds, greedy, strict=True))

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The ELBO of each whole text, in windows as long as the model, each given as much of what is before it as fits."""
        room = getattr(self.denoiser.backbone.config, "max_position_embeddings", None)
        results = []
        for request in requests:
            ids = self._encode(request.args[0])
            # Half a window is read for the sake of the other half: the first tokens of a window would have no context.
            stride = len(ids) if room is None or len(ids) <= room else room // 2
            starts = range(0, len(ids), stride or 1)
            results.append(sum(self.elbo(ids[:start], ids[start : start + stride]) for start in starts))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, results[-1])
        return results

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """A completion of each (context, settings), cut where the first of the stop texts begins.

        `max_gen_toks` is the completion length; with `do_sample` the `temperature`, `top_k` and `top_p` hold, without it tokens
        are the likeliest.
        """
        places: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            places.setdefault(str(sorted(request.args[1].items())), []).append(place)
        texts = [""] * len(requests)
        for same in places.values():
            settings = requests[same[0]].args[1]
            contexts = [requests[place].args[0] for place in same]
            engine = LocalEngine(Policy(self.denoiser, self.tokenizer), BatchLimits(self.batch_size))
            path = engine.rollout(contexts, self._sampler(settings), self._seeds(contexts))
            for place, text in zip(same, decode(self.tokenizer, path.tokens), strict=True):
                texts[place] = _cut(text, settings.get("until") or [])
                self.cache_hook.add_partial("generate_until", requests[place].args, texts[place])
        return texts

    @torch.no_grad()
    def elbo(self, context: list[int], continuation: list[int]) -> float:
        """Estimate of the ELBO of token ids given others, nats: an unbiased one of E_l E_{|S| = l} (n/l) Σ_S log p, l ~ U{1..n}.

        With one token there is one mask, and the value is exact.

        Raises:
            ConfigError: the model is block-causal, of which this is not the likelihood.
            DataError: the continuation alone is longer than the model.
        """
        if self.denoiser.block_length is not None:
            raise ConfigError(
                f"{self.pretrained} is block-causal, and this ELBO is that of models in which every position sees every other. "
                "Run tasks that generate (output_type: generate_until)."
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
        given = torch.tensor(self._fitted(context, count), dtype=torch.long)
        target = torch.tensor(continuation)
        total = 0.0
        for start in range(0, draws, self.batch_size):
            block = masks[0, start : start + self.batch_size]
            logprob = self._logprob(given, target, block)
            total += float((weights[start : start + self.batch_size] * logprob.masked_fill(~block, 0.0).sum(-1)).sum())
        return total / draws

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Messages as the tokenizer's template has them."""
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
        except Exception as error:  # a template can raise what it likes
            raise DataError(f"the chat template of {self.pretrained} cannot be used: {reason(error)}.") from error

    @property
    def tokenizer_name(self) -> str:
        """For the harness's cache of requests."""
        return self.pretrained.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's text, for the harness's record."""
        return str(self.tokenizer.chat_template or "")

    def _logprob(self, given: Tensor, target: Tensor, masks: Tensor) -> Tensor:
        """[M, n] float64: log-probability of each target token where the positions of a mask [M, n] are hidden."""
        target = target.expand(len(masks), -1)
        prompt = given.expand(len(masks), -1).to(self._device)
        hidden = target.masked_fill(masks, self.denoiser.mask_id).to(self._device)
        positions = torch.arange(target.shape[1], device=self._device).expand(len(masks), -1)
        is_there = torch.ones_like(prompt, dtype=torch.bool)
        logits = predict(self.denoiser, prompt, is_there, hidden, positions, self.denoiser.mask_id)
        logprob: Tensor = logits.double().log_softmax(-1).cpu().gather(-1, target.unsqueeze(-1)).squeeze(-1)
        return logprob

    def _is_greedy(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[bool]:
        """Whether greedy denoising, one token a step, gives the continuation; those of one length together."""
        by_count: dict[int, list[int]] = {}
        for place, (_, continuation) in enumerate(pairs):
            by_count.setdefault(len(continuation), []).append(place)
        verdicts = [True] * len(pairs)
        for count, places in by_count.items():
            for start in range(0, len(places) if count else 0, self.batch_size):
                block = places[start : start + self.batch_size]
                found = self._greedy([pairs[place][0] for place in block], count)
                for place, tokens in zip(block, found, strict=True):
                    verdicts[place] = tokens == pairs[place][1]
        return verdicts

    def _greedy(self, contexts: Sequence[list[int]], count: int) -> list[list[int]]:
        sampler = make_sampler(max_completion_length=count, num_steps=count, temperature=0.0, order=self.order)
        ids, is_there = left_pad([self._fitted(context, count) for context in contexts], self.denoiser.pad_id)
        seeds = self._seeds([str(context) for context in contexts]).to(self._device)
        path = denoise(self.denoiser, ids.to(self._device), is_there.to(self._device), sampler, seeds)
        found: list[list[int]] = path.tokens.tolist()
        return found

    def _sampler(self, settings: dict[str, Any]) -> Any:
        temperature = float(settings.get("temperature") or 1.0) if settings.get("do_sample") else 0.0
        narrowing = {key: settings[key] for key in ("top_k", "top_p") if temperature and settings.get(key)}
        return make_sampler(
            max_completion_length=int(settings.get("max_gen_toks") or self.length),
            num_steps=self.steps,
            block_length=self.block_length,
            order=self.order,
            temperature=temperature,
            **narrowing,
        )

    def _seeds(self, contexts: Sequence[str]) -> Tensor:
        """[B] int64: a hash of the context, and of how often it came before, so that repeats are other samples."""
        seen: dict[str, int] = {}

        def seeds() -> Iterator[Tensor]:
            for context in contexts:
                seen[context] = repeat = seen.get(context, -1) + 1
                yield row_seeds(1, named_generator(self.seed, "harness", context, repeat))

        return torch.cat(list(seeds()))

    def _tokens(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Both as ids; white space that ends the context belongs to the continuation, as tokenizers have it."""
        bare = context.rstrip()
        whole, given = self._encode(context + continuation), self._encode(bare)
        return given, whole[len(given) :]

    def _encode(self, text: str) -> list[int]:
        try:
            ids: list[int] = list(self.tokenizer(text, add_special_tokens=False).input_ids)
        except Exception as error:  # tokenizers raise bare Exceptions of their own
            raise DataError(f"the tokenizer cannot encode {text[:80]!r} ({str(error).splitlines()[0]}).") from error
        return ids

    def _fitted(self, context: list[int], count: int) -> list[int]:
        """As much of the context's end as fits before `count` tokens."""
        room = getattr(self.denoiser.backbone.config, "max_position_embeddings", None)
        if room is None:
            return context
        if count > room:
            raise DataError(f"a continuation of {count} tokens does not fit into the model's {room} positions.")
        return context[max(0, len(context) + count - room) :]


def _cut(text: str, until: str | Sequence[str]) -> str:
    """The text before the first of the stop texts."""
    stops = [until] if isinstance(until, str) else until
    return text[: min([place for stop in stops if stop and (place := text.find(stop)) >= 0], default=len(text))]


def default_device() -> str:
    """A CUDA GPU if there is one, otherwise the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def run(arguments: Sequence[str]) -> None:
    """Run the harness's own command `run` with this model, on the device that other commands choose, too.

    The harness itself takes a CUDA GPU unless it is told otherwise.
    """
    from lm_eval.__main__ import cli_evaluate

    # A file given by --config may name a device, too.
    is_chosen = any(argument.partition("=")[0] in ("--device", "--config", "-C") for argument in arguments)
    device = [] if is_chosen else ["--device", default_device()]
    sys.argv = ["lm_eval", "run", "--model", "unmask", *device, *arguments]
    cli_evaluate()
