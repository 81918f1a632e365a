"""Masked-diffusion pretraining: the ELBO of MDLM and LLaDA on a task's demonstrations, from scratch or from a checkpoint.

-ELBO = E_t [ (1/t) Σ_{i masked} -log p_θ(x_i | x_t) ], each completion position masked with probability t
(arXiv:2406.07524, arXiv:2502.09992), t stratified over the batch.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unmask.core.errors import ConfigError, DataError, RunError
from unmask.core.records import Readout, Row
from unmask.evaluation.model_card import pretraining_card, push
from unmask.evaluation.usable import Usable, faults_for, usable_rows
from unmask.functional.distribution import token_logprobs
from unmask.functional.elbo import elbo, mask_at_times, stratified_times
from unmask.functional.noise import named_generator
from unmask.models import Denoiser, Policy, char_tokenizer, tiny_denoiser
from unmask.models.adapters import save_adapted
from unmask.models.from_run import describe, locate
from unmask.recipes.load import completed
from unmask.recipes.schema import PretrainRecipe
from unmask.runs.folder import RunFolder, disk_faults_explained
from unmask.runs.metrics import read_metrics
from unmask.sampling.generation import check_fits_context, encode_batch
from unmask.sampling.predict import predict, predict_in_chunks
from unmask.trainer.distributed import backend
from unmask.trainer.distributed.accelerator import finish_trackers, make_accelerator, start_trackers
from unmask.trainer.distributed.ranks import Ranks
from unmask.trainer.distributed.shards import prepare
from unmask.trainer.distributed.state import RunState
from unmask.trainer.distributed.stopping import RunStoppedError, StopSignals
from unmask.trainer.distributed.watchdog import Watchdog, losses_explained
from unmask.trainer.learn import positions_at_once
from unmask.trainer.optimizer import make_optimizers, set_learning_rate
from unmask.trainer.policy import base_mark, equip, load_policy

if TYPE_CHECKING:
    from collections.abc import Callable

    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase


def pretrain(
    recipe: PretrainRecipe, *, resume: bool = False, observe: Callable[[int, dict[str, Any]], None] | None = None
) -> Path:
    """Train as the recipe says and return the run folder, with the model in `final/`.

    A run that has finished is left as it is, unless the recipe's max_steps is larger than its own was.

    Raises:
        RunStoppedError: SIGINT, SIGTERM, SIGHUP or SIGUSR1; the step was finished and saved.
        UnmaskError: whatever of the recipe, the model, the rows or the run folder cannot be used.
    """
    accelerator, place = make_accelerator(recipe), Path(recipe.output_dir or "runs/pretrain")
    watchdog = Watchdog(accelerator.process_index, accelerator.num_processes, recipe.stuck_timeout, place)
    ranks = Ranks(accelerator, watchdog.meet)
    with ranks.agreed():
        if recipe.model is not None:
            # Recorded as what it stands for now, so that a resumed run does not start from another checkpoint.
            recipe = recipe.model_copy(update={"model": locate(recipe.model)})
        recipe = recipe.model_copy(update={"task": recipe.task.kept_in(place)})
        denoiser, tokenizer = _start_model(recipe)
        usable = _usable(recipe, denoiser, tokenizer)
        source = recipe.task.provenance()
        folder = RunFolder(
            place,
            recipe.model_dump(mode="json"),
            resume=resume,
            is_main=accelerator.is_main_process,
            data=source | usable.record() if source else source,
            completed=completed(PretrainRecipe),
            working=watchdog.live,
        )
    try:
        with ranks.agreed():
            if folder.is_main:
                with disk_faults_explained(place):
                    recipe.task.write_rows(place)
        if not ranks.from_main(_is_finished(folder, recipe.max_steps) if folder.is_main else False):
            with StopSignals() as signals, losses_explained(ranks.count), watchdog:
                _run(
                    recipe,
                    accelerator,
                    ranks,
                    Policy(denoiser, tokenizer),
                    usable.rows["train"],
                    folder,
                    signals,
                    watchdog,
                    observe,
                )
            if recipe.push_to_hub and accelerator.is_main_process:
                push(folder.final, recipe.push_to_hub)
    finally:
        folder.close()
    return folder.path


def _is_finished(folder: RunFolder, max_steps: int) -> bool:
    """Whether there is a final model of so many steps; an extended run has one of fewer."""
    if not (folder.final / "config.json").is_file():
        return False
    lines = read_metrics(folder.path) if folder.metrics_path.exists() else []
    return not lines or lines[-1]["step"] >= max_steps


def _run(
    recipe: PretrainRecipe,
    accelerator: Accelerator,
    ranks: Ranks,
    start: Policy,
    rows: Sequence[Row],
    folder: RunFolder,
    signals: StopSignals,
    watchdog: Watchdog,
    observe: Callable[[int, dict[str, Any]], None] | None,
) -> None:
    with ranks.agreed():
        if recipe.batch_size % ranks.count:
            raise ConfigError(
                f"batch_size = {recipe.batch_size} cannot be shared by {ranks.count} processes. Use a multiple."
            )
        denoiser, tokenizer = start
        adapters = equip(recipe, denoiser, recipe.model)
        corpus = Corpus(recipe, denoiser, tokenizer, rows)
        mark = base_mark(denoiser, adapters)
    optimizers = make_optimizers(denoiser, recipe.optim, recipe.muon_learning_rate)
    model, prepared = prepare(accelerator, denoiser, optimizers)
    state = RunState(
        accelerator,
        denoiser,
        model,
        prepared,
        recipe.optim,
        mark,
        lambda target: describe(target, denoiser, tokenizer, adapters),
        ranks,
    )
    watchdog.count_forwards(denoiser)
    done = state.resume(folder)
    with ranks.agreed():
        folder.open_metrics(done)
    start_trackers(accelerator, recipe, folder, done)
    share = ranks.share(recipe.batch_size)
    model.train()
    for step in range(done, recipe.max_steps):
        started = time.perf_counter()
        watchdog.begin(step + 1, "update")
        batch = corpus.draw(named_generator(recipe.seed, "pretrain", step), share, accelerator.device)
        for optimizer in prepared:
            optimizer.zero_grad()
        # Dropout, where a checkpoint or its adapters have any, is drawn anew at each step, by each process.
        with _seeded(recipe.seed, step, ranks.index, accelerator.device):
            loss = _add_gradient(accelerator, model, corpus, batch, recipe.max_tokens_per_forward)
        # Of all processes: one that stopped alone would leave the others waiting for it.
        losses = ranks.objects(loss)
        mean = sum(losses) / len(losses)
        if not math.isfinite(mean):
            raise _not_finite(f"the loss at step {step + 1} is {mean}")
        set_learning_rate(prepared, recipe.optim, step, recipe.max_steps)
        try:
            backend.step(accelerator, model, prepared, recipe.optim.max_grad_norm)
        except FloatingPointError as error:
            raise _not_finite(f"step {step + 1}: {error}") from error
        metrics = {"loss": mean, "time/step": time.perf_counter() - started}
        with ranks.agreed():
            folder.log({"step": step + 1} | metrics)
        accelerator.log(metrics, step=step + 1)
        if observe is not None and accelerator.is_main_process:
            observe(step + 1, metrics)
        asked = ranks.largest(signals.asked)
        is_stopped = asked and step + 1 < recipe.max_steps
        if (step + 1) % recipe.save_steps == 0 or is_stopped:
            watchdog.begin(step + 1, "writing a checkpoint")
            state.save(folder, step + 1, recipe.save_total_limit)
        if is_stopped:
            raise RunStoppedError(step + 1, recipe.max_steps, folder.path, asked)
    watchdog.begin(recipe.max_steps, "writing final/")
    weights = state.whole_weights()
    with ranks.agreed():
        if folder.is_main:
            with folder.written_aside(folder.final) as final:
                save_adapted(denoiser, tokenizer, adapters, final, weights)
                notes = folder.facts.get("extended", ())
                card = pretraining_card(recipe, read_metrics(folder.path), folder.data, denoiser, notes)
                (final / "README.md").write_text(card, encoding="utf-8")
    finish_trackers(accelerator)


def _add_gradient(
    accelerator: Accelerator, model: torch.nn.Module, corpus: Corpus, batch: PretrainBatch, max_tokens: int | None
) -> float:
    """Back-propagate the loss of a batch, part by part, and return it."""
    loss, parts = 0.0, batch.split(max_tokens)
    for i, part in enumerate(parts):
        is_last = i == len(parts) - 1
        with backend.accumulating(accelerator, model, is_last):
            share = corpus.loss(model, part) * (len(part) / len(batch))
            backend.backward(accelerator, model, share, is_last)
        loss += float(share.detach())
    return loss


@dataclass(frozen=True, slots=True)
class PretrainBatch:
    """Demonstrations with what is masked of them."""

    prompt_ids: Tensor
    """[B, P] int64, left-padded."""
    prompt_mask: Tensor
    """[B, P] bool, False at padding."""
    completion: Tensor
    """[B, L] int64."""
    masked: Tensor
    """[B, L] bool."""
    times: Tensor
    """[B] float, with which a token was masked."""
    num_blocks: int
    """That the masked one of each row stands for."""

    def __len__(self) -> int:
        return len(self.completion)

    def split(self, max_tokens: int | None) -> list[PretrainBatch]:
        """Parts of at most so many rows times tokens, and at least one row."""
        width = self.prompt_ids.shape[1] + self.completion.shape[1]
        rows = len(self) if max_tokens is None else max(1, max_tokens // width)
        names = [f.name for f in fields(self) if f.name != "num_blocks"]
        return [
            replace(self, **{name: getattr(self, name)[start : start + rows] for name in names})
            for start in range(0, len(self), rows)
        ]


class Corpus:
    """Encoded demonstrations, and the loss of a random batch of them.

    Args:
        recipe: names the task and the share of sloppy demonstrations.
        denoiser: whose special tokens are used.
        tokenizer: of that model.
        rows: whose demonstrations they are; default the task's, all of which have to fit.

    Raises:
        DataError: a demonstration that is longer than the completion.
    """

    def __init__(
        self, recipe: PretrainRecipe, denoiser: Denoiser, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row] = ()
    ) -> None:
        rows = rows or recipe.task.rows("train", recipe.num_rows, recipe.seed)
        length = _completion_length(recipe)
        completions = []
        for i, row in enumerate(rows):
            rng = random.Random(f"{recipe.seed}/demonstration/{i}")
            text = recipe.task.demonstration(row, rng, rng.random() < recipe.noise_share)
            ids = tokenizer(text, add_special_tokens=False).input_ids
            if len(ids) > length:
                raise DataError(
                    f"a demonstration of {len(ids)} tokens does not fit into max_completion_length = {length}: {text[:80]!r}."
                )
            # EOS to the end: the model learns to end, and what stands after the end.
            completions.append(ids + [denoiser.eos_id] * (length - len(ids)))
        self.prompt_ids, self.prompt_mask = encode_batch(tokenizer, [row["prompt"] for row in rows], denoiser.pad_id)
        check_fits_context(denoiser, self.prompt_ids.shape[1], length)
        if denoiser.block_length is not None and length % denoiser.block_length:
            raise ConfigError(
                f"the model's blocks have {denoiser.block_length} positions, which do not divide max_completion_length = "
                f"{length}. Use a multiple of {denoiser.block_length}."
            )
        self.completions = torch.tensor(completions)
        self.mask_id, self.block_length = denoiser.mask_id, denoiser.block_length
        self.batch_size, self.min_time = recipe.batch_size, recipe.min_time
        self.positions_at_once = positions_at_once(denoiser) or len(completions) * length

    def draw(self, generator: torch.Generator, share: slice, device: torch.device) -> PretrainBatch:
        """A random batch; the `share` of it that this process owns."""
        # Drawn for all processes, so that their number does not change what is learnt.
        rows = torch.randint(len(self.completions), (self.batch_size,), generator=generator)
        times = stratified_times(self.batch_size, self.min_time, generator)
        everything = torch.ones_like(self.completions[rows], dtype=torch.bool)
        masked = mask_at_times(times, everything, generator)
        # Block diffusion (arXiv:2503.09573): a block is masked and those before it are clean; what is after it is not seen.
        # One block of each row stands for all of them.
        num_blocks = 1 if self.block_length is None else masked.shape[1] // self.block_length
        if self.block_length is not None:
            block = torch.randint(num_blocks, (self.batch_size, 1), generator=generator)
            masked &= torch.arange(masked.shape[1]) // self.block_length == block
        rows = rows[share]
        return PretrainBatch(
            prompt_ids=self.prompt_ids[rows].to(device),
            prompt_mask=self.prompt_mask[rows].to(device),
            completion=self.completions[rows].to(device),
            masked=masked[share].to(device),
            times=times[share].to(device),
            num_blocks=num_blocks,
        )

    def loss(self, model: torch.nn.Module, batch: PretrainBatch) -> Tensor:
        """-ELBO per completion token of a batch, nats."""
        target, masked = batch.completion, batch.masked
        everywhere = torch.arange(target.shape[1], device=target.device).expand_as(target)
        asked = (
            batch.prompt_ids,
            batch.prompt_mask,
            target.masked_fill(masked, self.mask_id),
            everywhere,
            self.mask_id,
        )
        tokens = target.unsqueeze(-1)
        if target.numel() <= self.positions_at_once:
            logprob = _token_logprob(predict(model, *asked), tokens)  # type: ignore[arg-type]
        else:
            logprob = predict_in_chunks(model, *asked, Readout(_token_logprob, tokens, self.positions_at_once))
        return -elbo(logprob.squeeze(-1), masked, batch.times).mean() / target.shape[1] * batch.num_blocks


def _token_logprob(logits: Tensor, tokens: Tensor) -> Tensor:
    return token_logprobs(logits).gather(-1, tokens)


@contextmanager
def _seeded(seed: int, step: int, process: int, device: torch.device) -> Iterator[None]:
    """torch's own generators, from which dropout draws, as a function of the step; afterwards they are as before."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(named_generator(seed, "dropout", step, process).initial_seed())
        yield


def _completion_length(recipe: PretrainRecipe) -> int:
    return recipe.max_completion_length or recipe.task.completion_length


def _usable(recipe: PretrainRecipe, denoiser: Denoiser, tokenizer: PreTrainedTokenizerBase) -> Usable:
    """The rows to learn from: those whose prompt and demonstration fit into the model."""
    candidates = recipe.task.candidates("train", recipe.num_rows, recipe.seed)
    faults_of = faults_for(
        recipe.task, denoiser, tokenizer, _completion_length(recipe), needs_answer=True, is_learnt=True
    )
    return usable_rows({"train": candidates}, faults_of)


def _start_model(recipe: PretrainRecipe) -> Policy:
    if recipe.model is not None:
        return load_policy(recipe, recipe.model)
    tokenizer = char_tokenizer(recipe.task.alphabet)
    return Policy(tiny_denoiser(recipe.tiny, tokenizer, recipe.seed).to(getattr(torch, recipe.dtype)), tokenizer)


def _not_finite(what: str) -> RunError:
    fault = RunError(
        f"{what}. Nothing was overwritten. Resuming would come to the same: "
        "train anew, with a smaller optim.learning_rate or muon_learning_rate, in another output_dir."
    )
    # The loss and the gradient are of all processes.
    fault.is_agreed = True
    return fault
