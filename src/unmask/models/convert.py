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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.core.errors import ModelError
from unmask.models.families import FAMILIES, UNSUPPORTED, family_of
from unmask.models.family import Family
from unmask.models.from_run import locate
from unmask.models.layout import is_native, native_config, original_config, renamed
from unmask.models.loading import load_model, save_model
from unmask.models.native import NATIVE_CLASSES, twins_of
from unmask.models.size import built_empty, check_size, sizes_of_tensors
from unmask.models.source import local_folder, origin_of_download, read_json, refuse_pickles
from unmask.models.tokenizers import complete_tokenizer
from unmask.runs.atomic import folder_replaced_whole
from unmask.runs.checkpoints import is_checkpoint

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SHARD_BYTES = 2_000_000_000
"""Size of an output file in bytes. A conversion that changes the dtype needs as much memory; any
other conversion maps the files."""

MARGIN = 1.02
"""Required disk space, as a multiple of the size of the tensors."""

SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True, slots=True)
class Piece:
    """A tensor that is converted."""

    file: Path
    name: str
    """Name in the source."""
    target: str
    """Name in the destination."""
    shape: tuple[int, ...]
    kind: str
    """Dtype in the destination, by its name in safetensors."""

    @property
    def num_bytes(self) -> int:
        """Size in the destination, in bytes."""
        return prod(self.shape) * SIZES[self.kind]


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
    try:
        name, family = _family(str(source), raw, to)
        _check_direction(str(source), raw, family, to)
        length = block_length or family.block_length_of(str(source), _stated_block_length(raw, family))
        config = native_config(raw, name, family, length)
    except ModelError:
        raise
    except Exception as error:  # a config can be wrong in more ways than can be listed
        what = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(f"{folder / 'config.json'} cannot be used: {what}. Copy the checkpoint again.") from error
    pieces = _plan(folder, family, config, is_native(raw, family), dtype)
    words = local_folder(tokenizer, tell, is_model=False) if tokenizer else folder
    carried = complete_tokenizer(words, family, raw)
    if len(carried) > config.vocab_size:
        raise ModelError(
            f"the tokenizer has {len(carried)} tokens and the model only {config.vocab_size}: they do not belong together. "
            "Take the tokenizer that the model was trained with."
        )
    if to != "native":
        pieces = [replace(piece, target=renamed(piece.target, family, back=True)) for piece in pieces]
    if origin := origin_of_download(folder):
        config.converted_from = origin
    kinds = {piece.kind for piece in pieces}
    config.dtype = next((key for key, kind in DTYPES.items() if kinds == {kind}), "float32")
    out = config.to_diff_dict() | {"dtype": str(config.dtype).removeprefix("torch.")}
    if to != "native":
        out = original_config(out, family) | {"torch_dtype": out["dtype"]}
    _check_space(destination, sum(piece.num_bytes for piece in pieces))
    with written_aside(destination) as aside:
        _write_tensors(pieces, aside, shard_bytes, tell)
        carried.save_pretrained(aside)
        (aside / "config.json").write_text(json.dumps(out, indent=2, sort_keys=True) + "\n")
    return family


def _family(source: str, raw: Mapping[str, Any], to: str) -> tuple[str, Family]:
    """Return the name and entry of a checkpoint's family, or of the requested family."""
    architecture = (raw.get("architectures") or ["no class"])[0]
    if architecture in UNSUPPORTED:
        raise ModelError(f"{source} cannot be converted: {UNSUPPORTED[architecture]}.")
    name = family_of(raw)
    if name is None:
        raise ModelError(
            f"{source} holds a {architecture}, which belongs to no known family. Known: {', '.join(FAMILIES)} (`unmask models`). "
            "To add a family, add an entry to unmask/models/families.py."
        )
    if to not in ("native", "original"):
        if to not in FAMILIES:
            raise ModelError(
                f'--to "{to}" is neither native nor original nor a family. Families: {", ".join(FAMILIES)}.'
            )
        if FAMILIES[to].native_class != FAMILIES[name].native_class:
            raise ModelError(f"{source} is a {FAMILIES[name].title}, which cannot be written as {FAMILIES[to].title}.")
        name = to
    return name, FAMILIES[name]


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


def _plan(folder: Path, family: Family, config: Any, named_natively: bool, dtype: str | None) -> list[Piece]:
    """Return every tensor with its native name, after comparison with the tensors of the native
    class."""
    from safetensors import safe_open

    check_size(str(folder), family.native_class, config, sizes_of_tensors(folder))
    model = built_empty(str(folder), family.native_class, config)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    twins = twins_of(model)
    pieces, num_bytes = [], 0
    for file in _files(folder):
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 (not a dict)
                    part = opened.get_slice(name)
                    kind, shape = part.get_dtype(), tuple(part.get_shape())
                    num_bytes += prod(shape) * SIZES.get(kind, 0)
                    if name.endswith("rotary_emb.inv_freq"):
                        continue  # older files hold this; it follows from the config
                    target = name if named_natively else renamed(name, family)
                    kind = DTYPES[dtype] if dtype and kind in ("F64", *DTYPES.values()) else kind
                    pieces.append(Piece(file, name, target, shape, kind))
        except ModelError:
            raise
        except Exception as error:  # safetensors raises its own errors for damaged files
            raise ModelError(f"{file} cannot be read as safetensors: {error}. Copy it again.") from error
    _check_total_size(folder, num_bytes)
    have = {piece.target: piece.shape for piece in pieces}
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
    return _untwinned(pieces, twins, config)


def _untwinned(pieces: list[Piece], twins: Mapping[str, str], config: Any) -> list[Piece]:
    """Remove a head that the config ties to the embedding, if the weights of both are equal. If
    they differ, the head stays, and `config` is changed so that it describes an untied head."""
    import torch

    by_target = {piece.target: piece for piece in pieces}
    repeated = set()
    for twin, original in twins.items():
        if twin in by_target:
            if torch.equal(_tensor(by_target[twin]), _tensor(by_target[original])):
                repeated.add(twin)
            else:
                config.tie_word_embeddings = False
    return [piece for piece in pieces if piece.target not in repeated]


def _files(folder: Path) -> list[Path]:
    """Return the files of tensors: the files that the index names, or all files if there is no
    index."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map or not all(map(_is_file_name, weight_map.values())):
            raise ModelError(f"{index} has no weight_map with file names. Copy the checkpoint again.")
        files = [folder / name for name in sorted(set(weight_map.values()))]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise ModelError(f"{folder} lacks {', '.join(missing)}, which its index names. Copy the checkpoint again.")
        return files
    whole = folder / "model.safetensors"
    # Other files, such as adapters or weights in another layout, are not read by transformers
    # either.
    if files := [whole] if whole.is_file() else sorted(folder.glob("*.safetensors")):
        return files
    refuse_pickles(folder)
    raise ModelError(f"{folder} holds no weights, because it has no .safetensors file.")


def _check_total_size(folder: Path, num_bytes: int) -> None:
    """Raise ModelError if the index states another size than the tensors have, as it does beside
    files of another revision or precision."""
    index = folder / "model.safetensors.index.json"
    metadata = read_json(index).get("metadata") if index.is_file() else None
    stated = metadata.get("total_size") if isinstance(metadata, dict) else None
    if stated is not None and stated != num_bytes:
        raise ModelError(
            f"{index} says that the tensors have {stated} bytes, but the files hold {num_bytes}: they are not of one checkpoint. "
            "Download it again. If the release itself is published so, remove total_size from that file."
        )


def _is_file_name(name: object) -> bool:
    """Return True if an entry of an index is a plain file name, so that the file lies in the folder
    of the index."""
    return isinstance(name, str) and Path(name).name == name


def _tensor(piece: Piece) -> Tensor:
    """Read a tensor in the dtype of the destination."""
    from safetensors import safe_open

    with safe_open(piece.file, framework="pt") as opened:
        value: Tensor = opened.get_tensor(piece.name)
    return value.to(_torch_dtype(piece.kind)) if piece.kind in DTYPES.values() else value


def _torch_dtype(kind: str) -> torch.dtype:
    import torch

    return {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind]


def _write_tensors(pieces: list[Piece], folder: Path, shard_bytes: int, tell: Callable[[str], None]) -> None:
    """Write one file, or shards with an index as transformers writes it."""
    from safetensors.torch import save_file

    shards: list[list[Piece]] = [[]]
    for piece in pieces:
        if shards[-1] and sum(p.num_bytes for p in shards[-1]) + piece.num_bytes > shard_bytes:
            shards.append([])
        shards[-1].append(piece)
    where: dict[str, str] = {}
    for i, shard in enumerate(shards):
        name = "model.safetensors" if len(shards) == 1 else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        tell(f"writing {name}, {sum(piece.num_bytes for piece in shard) / 1e9:.2f} GB")
        save_file({piece.target: _tensor(piece) for piece in shard}, folder / name, {"format": "pt"})
        where |= {piece.target: name for piece in shard}
    if len(shards) > 1:
        total = sum(piece.num_bytes for piece in pieces)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


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
