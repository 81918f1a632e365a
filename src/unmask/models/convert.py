"""Conversion of checkpoints from a family's own layout to the native one of transformers, and back.
A conversion streams the tensors, writes everything or nothing, and runs no remote code.

Only .json, .safetensors and tokenizer files are read. Names and shapes are compared with the native
class before anything is written. Tensors then go from file to file in shards, so a checkpoint is
never in memory as a whole.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unmask.core.errors import ModelError
from unmask.models.assembly import Assembly, assembled
from unmask.models.families import FAMILIES, UNSUPPORTED, family_of
from unmask.models.family import Family
from unmask.models.from_run import locate
from unmask.models.layout import is_native, native_config, original_config
from unmask.models.loading import load_model, save_model
from unmask.models.native import NATIVE_CLASSES, twins_of
from unmask.models.size import built_empty, check_size, sizes_of_tensors
from unmask.models.source import local_folder, origin_of_download, read_json
from unmask.models.tensor_files import DTYPES, Piece, TensorFiles, write_tensors
from unmask.models.tokenizers import complete_tokenizer
from unmask.runs.atomic import folder_replaced_whole
from unmask.runs.checkpoints import is_checkpoint

SHARD_BYTES = 2_000_000_000
"""Size of an output file in bytes. A conversion that changes the dtype, or that divides, joins or
stacks tensors, needs as much memory; any other conversion maps the files."""

MARGIN = 1.02
"""Required disk space, as a multiple of the size of the tensors."""


def convert(
    source: str | os.PathLike[str],
    destination: Path,
    *,
    to: str = "native",
    dtype: str | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    block_length: int | None = None,
    revision: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    tell: Callable[[str], None] = lambda _: None,
) -> Family:
    """Write a checkpoint in another layout, completely or not at all.

    Args:
        source: folder or hub id of a checkpoint in a family's original layout or in the native one.
        destination: folder that does not exist yet.
        to: `native`; `original`, the layout of the family that the checkpoint came from; or the
            name of a family.
        dtype: dtype of the floating-point tensors: float32, bfloat16 or float16; default unchanged.
        tokenizer: folder or hub id of a tokenizer, for a source without one.
        block_length: block length of block-causal attention, if neither the source's config nor its
            name states it, or to overrule them.
        revision: commit, branch or tag of a source on the hub; default its newest commit.
        shard_bytes: size of a file of tensors.
        tell: function that gets a line of text before each slow operation.

    Returns:
        The family.

    Raises:
        ModelError: the source, the destination, its disk or an option cannot be used.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ModelError(f'unknown dtype "{dtype}". Available: {", ".join(DTYPES)}.')
    refuse_existing(destination)
    source = locate(source)
    if revision and Path(source).expanduser().exists():
        raise ModelError(
            f"--revision {revision} names a version on the hub, but {source} is a folder here. Leave it out."
        )
    if is_checkpoint(Path(source)):
        # The tensors of a checkpoint of a run have other names, beside the optimizer's state.
        with _beside(destination) as plain:
            save_model(*load_model(source), plain)
            settings = {"to": to, "dtype": dtype, "tokenizer": tokenizer, "block_length": block_length}
            return convert(plain, destination, **settings, shard_bytes=shard_bytes, tell=tell)  # type: ignore[arg-type]
    folder = local_folder(source, tell, revision=revision)
    raw = read_json(folder / "config.json")
    family, config = _understood(str(source), folder, raw, to, block_length)
    files = TensorFiles(folder)
    pieces = _plan(folder, family, config, files, named_natively=is_native(raw, family), dtype=dtype)
    words = local_folder(tokenizer, tell, is_model=False) if tokenizer else folder
    carried = complete_tokenizer(words, family, raw)
    if len(carried) > config.vocab_size:
        raise ModelError(
            f"the tokenizer has {len(carried)} tokens and the model only {config.vocab_size}: they do not belong together. "
            "Take the tokenizer that the model was trained with."
        )
    if to != "native":
        pieces = _back(pieces, files, family)
    if origin := origin_of_download(folder):
        config.converted_from = origin
    config.dtype = _dtype_of(pieces)
    out = _config_file(config, family, to)
    _check_space(destination, sum(piece.num_bytes for piece in pieces))
    with written_aside(destination) as aside:
        write_tensors(pieces, files, aside, shard_bytes, tell)
        carried.save_pretrained(aside)
        (aside / "config.json").write_text(json.dumps(out, indent=2, sort_keys=True) + "\n")
    return family


def _understood(
    source: str, folder: Path, raw: Mapping[str, Any], to: str, block_length: int | None
) -> tuple[Family, Any]:
    """Return the family and the native config of a checkpoint with the config `raw`."""
    try:
        name, family = _family(source, raw, to)
        _check_direction(source, raw, family, to)
        length = block_length or family.block_length_of(source, _stated_block_length(raw, family))
        return family, native_config(raw, name, family, length)
    except ModelError:
        raise
    except Exception as error:  # a config can be wrong in more ways than can be listed
        what = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(f"{folder / 'config.json'} cannot be used: {what}. Copy the checkpoint again.") from error


def _config_file(config: Any, family: Family, to: str) -> dict[str, Any]:
    """Return the content of config.json in the requested layout."""
    out: dict[str, Any] = config.to_diff_dict() | {"dtype": str(config.dtype).removeprefix("torch.")}
    if to == "native":
        return out
    # transformers saves some values under a newer name than the one that it reads.
    renamed = {name: getattr(config, name) for name in config.attribute_map if name not in out}
    return original_config(renamed | out, family) | {"torch_dtype": out["dtype"]}


def _family(source: str, raw: Mapping[str, Any], to: str) -> tuple[str, Family]:
    """Return the name and entry of a checkpoint's family, or of the requested family."""
    architecture = (raw.get("architectures") or ["no class"])[0]
    if architecture in UNSUPPORTED:
        raise ModelError(f"{source} cannot be converted: {UNSUPPORTED[architecture]}.")
    name = family_of(raw)
    if name is None:
        raise ModelError(
            f"{source} holds a {architecture}, which belongs to no known family. Known: {', '.join(FAMILIES)} (`unmask models`). "
            "To add a family, add an entry to unmask/models/releases."
        )
    if to not in ("native", "original"):
        if to not in FAMILIES:
            raise ModelError(
                f'--to "{to}" is neither native nor original nor a family. Families: {", ".join(FAMILIES)}.'
            )
        if _function(FAMILIES[to]) != _function(FAMILIES[name]):
            raise ModelError(f"{source} is a {FAMILIES[name].title}, which cannot be written as {FAMILIES[to].title}.")
        name = to
    for part, reason in FAMILIES[name].refused_names.items():
        if part.lower() in Path(source).name.lower():
            raise ModelError(f"{source} cannot be converted: {reason}.")
    return name, FAMILIES[name]


def _function(family: Family) -> tuple[str, bool]:
    """Return what two families must have in common for a checkpoint to be written as either."""
    return family.native_class, family.logit_shift


def _stated_block_length(raw: Mapping[str, Any], family: Family) -> int | None:
    """Return the block length in a config, in the original or the native layout."""
    key = next((key for key, native in family.fields.items() if native == "block_length"), "block_length")
    return raw.get("block_length" if is_native(raw, family) else key)


def _check_direction(source: str, raw: Mapping[str, Any], family: Family, to: str) -> None:
    """Raise for a checkpoint that is already in the requested layout, or that is not a diffusion
    model."""
    if not is_native(raw, family) and to != "native":
        raise ModelError(f"{source} is already in the layout of {family.title}, so there is nothing to convert.")
    needs_saying = NATIVE_CLASSES[family.native_class].auto_class == "AutoModelForCausalLM"
    if is_native(raw, family) and needs_saying and raw.get("is_causal", True):
        raise ModelError(
            f"{source} is an autoregressive {family.native_class}: its config.json does not say is_causal: false. "
            "Conversion does not turn it into a diffusion model. If the model was trained as a diffusion model, "
            'add "is_causal": false to its config.json.'
        )


def _plan(
    folder: Path, family: Family, config: Any, files: TensorFiles, *, named_natively: bool, dtype: str | None
) -> list[Piece]:
    """Return every tensor of the native layout, after comparison with the tensors of the native
    class."""
    check_size(str(folder), family.native_class, config, sizes_of_tensors(folder))
    model = built_empty(str(folder), family.native_class, config)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    twins = twins_of(model)
    shapes = {name: stored.shape for name, stored in files.stored.items()}
    assemblies = assembled(shapes, family, expected, named_natively=named_natively)
    have = {assembly.target: assembly.shape for assembly in assemblies}
    missing = sorted(expected.keys() - have.keys() - twins.keys())
    wrong = [f"{name} is {list(have[name])}, not {list(s)}" for name, s in expected.items() if have.get(name, s) != s]
    extra = sorted(have.keys() - expected.keys())
    for what, names in (("lacks", missing), ("differs in shape:", wrong), ("has, beyond the native class,", extra)):
        if names:
            more = ", ..." if len(names) > 3 else ""
            raise ModelError(
                f"{folder} {what} {', '.join(names[:3])}{more}: its tensors do not belong to its config.json. "
                "Copy the checkpoint again, or correct the config."
            )
    # The biases of routers are float32 in the native class, whatever the dtype of the weights.
    exact = model._keep_in_fp32_modules_strict or ()
    pieces = [Piece(each, _kind(each, files, dtype, exact)) for each in assemblies]
    return _untwinned(pieces, files, twins, config)


def _back(pieces: list[Piece], files: TensorFiles, family: Family) -> list[Piece]:
    """Return every tensor of the original layout, in the dtypes of native pieces."""
    kinds = {source.name: piece.kind for piece in pieces for group in piece.assembly.groups for source in group}
    shapes = {name: stored.shape for name, stored in files.stored.items() if name in kinds}
    assemblies = assembled(shapes, family, {}, back=True)
    return [Piece(each, kinds[each.groups[0][0].name]) for each in assemblies]


def _kind(assembly: Assembly, files: TensorFiles, dtype: str | None, exact: Iterable[str]) -> str:
    """Return the dtype in which a tensor is written."""
    kind = files.stored[assembly.groups[0][0].name].kind
    is_exact = any(assembly.target.endswith(name) for name in exact)
    return "F32" if is_exact else DTYPES[dtype] if dtype and kind in ("F64", *DTYPES.values()) else kind


def _dtype_of(pieces: list[Piece]) -> str:
    """Return the dtype that the config states: that of most values, or float32 if it is no dtype of a
    model."""
    sizes: Counter[str] = Counter()
    for piece in pieces:
        sizes[piece.kind] += piece.assembly.size
    most = sizes.most_common(1)[0][0]
    return next((name for name, kind in DTYPES.items() if kind == most), "float32")


def _untwinned(pieces: list[Piece], files: TensorFiles, twins: Mapping[str, str], config: Any) -> list[Piece]:
    """Remove a head that the config ties to the embedding, if the weights of both are equal. If
    they differ, the head stays, and `config` is changed so that it describes an untied head."""
    import torch

    by_target = {piece.assembly.target: piece for piece in pieces}
    repeated = set()
    for twin, original in twins.items():
        if twin in by_target:
            if torch.equal(files.put_together(by_target[twin]), files.put_together(by_target[original])):
                repeated.add(twin)
            else:
                config.tie_word_embeddings = False
    return [piece for piece in pieces if piece.assembly.target not in repeated]


def _check_space(destination: Path, num_bytes: int) -> None:
    parent = next(parent for parent in destination.absolute().parents if parent.exists())
    free, needed = shutil.disk_usage(parent).free, int(num_bytes * MARGIN)
    if free < needed:
        raise ModelError(
            f"conversion writes {needed / 1e9:.2f} GB, but {parent} has only {free / 1e9:.2f} GB free. Free some space, name a "
            "destination on another disk, or choose a smaller --dtype."
        )


def refuse_existing(destination: Path) -> None:
    """Raise ModelError if the destination exists."""
    with _explained(destination):
        is_there = destination.exists() or destination.is_symlink()
    if is_there:
        raise ModelError(f"{destination} exists already. Name a folder that does not exist, or remove this one.")


@contextmanager
def written_aside(destination: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes the destination at the end; after an error the folder
    is removed.

    Raises:
        ModelError: the destination exists already, or could not be written completely.
    """
    refuse_existing(destination)
    with _beside(destination) as folder, folder_replaced_whole(destination, folder / "model") as aside:
        yield aside
        refuse_existing(destination)


@contextmanager
def _beside(destination: Path) -> Iterator[Path]:
    """Yield a temporary folder on the destination's disk, which is removed at the end."""
    with _explained(destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{destination.name[:64]}.", dir=destination.parent))
    try:
        with _explained(destination):
            yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _explained(destination: Path) -> Iterator[None]:
    """Turn an error of the file system into a ModelError that names the destination."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors wraps the system's error in its own
        raise ModelError(
            f"{destination} could not be written: {getattr(error, 'strerror', None) or error}. Nothing was left behind; name "
            "another destination."
        ) from error
