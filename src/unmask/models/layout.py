"""Mapping of config values and tensor names from a family's original layout to its native class,
and back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from unmask.core.errors import ModelError
from unmask.models.family import Family
from unmask.models.native import NATIVE_CLASSES

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def is_native(raw: Mapping[str, Any], family: Family) -> bool:
    """Return True if a config.json of this family is in its native layout."""
    return not family.architecture or raw.get("model_type") == family.native_type


def native_config(
    raw: Mapping[str, Any], name: str, family: Family, block_length: int | None = None
) -> PreTrainedConfig:
    """Build the native config that computes the same function as an original one.

    Args:
        raw: content of config.json, in the original or the native layout.
        name: name of the family, which is recorded in the config for conversion back.
        family: entry of the family.
        block_length: block length of block-causal attention, instead of that of the config.

    Raises:
        ModelError: the native class does not support a value.
    """
    from transformers import AutoConfig

    if is_native(raw, family):
        values = {
            key: value for key, value in raw.items() if key not in ("auto_map", "model_type", "transformers_version")
        }
    else:
        stated = {**family.defaults, **raw}
        _check_values(stated, family)
        values = {}
        for key, native in family.fields.items():
            if key in stated and (stated[key] is not None or native not in values):
                values[native] = stated[key]
        values["rope_parameters"] = _rotary(values, raw.get("rope_parameters") or {})
        if "rope_scaling" in family.fixed and values["rope_parameters"]["rope_type"] != "default":
            raise _unsupported(family, "rope_parameters", values["rope_parameters"], "unscaled positions")
        values |= family.constants
    config: PreTrainedConfig = AutoConfig.for_model(family.native_type, **values)
    config.architectures = [family.native_class]
    config.diffusion_family = name
    if NATIVE_CLASSES[family.native_class].auto_class == "AutoModelForCausalLM":
        config.is_causal = False
    if family.logit_shift:
        config.logit_shift = True
    if length := block_length or values.get("block_length"):
        config.block_length = length
    return config


def _check_values(raw: Mapping[str, Any], family: Family) -> None:
    """Raise ModelError for values of an original config that the native class does not support."""
    for key, reason in family.refused.items():
        if raw.get(key):
            raise ModelError(f"this {family.title} has {key}: {raw[key]!r}: {reason}. It cannot be converted.")
    for key, value in family.fixed.items():
        allowed = value if isinstance(value, tuple) else (value,)
        given = raw.get(key, allowed[0])
        of_layers = given if isinstance(given, list) and given else [given]
        if any(each not in allowed for each in of_layers):
            raise _unsupported(family, key, given, " or ".join(map(repr, allowed)))
    if set(raw.get("layer_types") or ()) - {"full_attention"}:
        raise ModelError(
            f"this {family.title} has layer_types: {', '.join(sorted(set(raw['layer_types'])))}, but only full_attention is "
            "supported. It cannot be converted."
        )


def _unsupported(family: Family, key: str, given: object, allowed: str) -> ModelError:
    return ModelError(
        f"this {family.title} has {key}: {given!r}, but {family.native_class} computes the same function only "
        f"with {allowed}. It cannot be converted."
    )


def _rotary(values: dict[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Remove the rotary settings from `values` and return them as `rope_parameters` of transformers
    5.

    transformers 4 wrote rope_theta, rope_scaling and partial_rotary_factor instead.
    """
    theta, scaling = values.pop("rope_theta", None), dict(values.pop("rope_scaling", None) or {})
    share = values.pop("partial_rotary_factor", None)
    partial = {} if share is None else {"partial_rotary_factor": share}
    # Under its older name the setting would be ignored, and positions would not be scaled.
    kind = scaling.pop("type", "default")
    return {"rope_type": kind, "rope_theta": 10000.0 if theta is None else theta} | partial | scaling | dict(parameters)


def original_config(native: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """Build the config.json of the original layout from a native one, with only the keys of the
    release.

    Raises:
        ModelError: the family has no layout of its own.
    """
    if not family.architecture:
        raise ModelError(f"{family.title} has no layout other than the native one, so there is nothing to convert to.")
    rope = dict(native.get("rope_parameters") or {})
    values = dict(native) | {"rope_theta": rope.pop("rope_theta", 10000.0)}
    values["partial_rotary_factor"] = rope.pop("partial_rotary_factor", 1.0)
    values["rope_scaling"] = None if rope.get("rope_type", "default") == "default" else rope
    mapped = {key: values[name] for key, name in family.fields.items() if name in values}
    fixed = {key: value[0] if isinstance(value, tuple) else value for key, value in family.fixed.items()}
    whole = {**family.written, **fixed, **mapped}
    whole |= {"architectures": [family.architecture], "model_type": family.model_type}
    return dict(sorted(whole.items()))


def renamed(tensor: str, family: Family, *, back: bool = False) -> str:
    """Return the native name of an original tensor or, with `back`, the original name of a native
    one. Tensors that the layouts divide differently have no entry here; see `assembled`.

    Example:
        >>> from unmask.models.families import FAMILIES
        >>> renamed("model.transformer.blocks.3.ff_proj.weight", FAMILIES["llada"])
        'model.layers.3.mlp.gate_proj.weight'
        >>> renamed("model.layers.3.mlp.gate_proj.weight", FAMILIES["llada"], back=True)
        'model.transformer.blocks.3.ff_proj.weight'

    Raises:
        ModelError: the family renames its tensors, and this one is not among them.
    """
    if not family.keys:
        return tensor
    for pair in family.keys:
        here, there = reversed(pair) if back else pair
        match = re.fullmatch(re.escape(here).replace(r"\{i\}", r"(\d+)"), tensor)
        if match:
            return there.replace("{i}", match.group(1)) if match.groups() else there
    raise ModelError(f"{tensor} is not a tensor of {family.title}'s {'native' if back else 'own'} layout.")
