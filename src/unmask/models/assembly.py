"""Names and shapes of the tensors of one layout, put together from the tensors of another.

Most tensors only change their names. Some layouts divide or join tensors: LLaDA2 stores queries,
keys and values as the rows of one matrix, and releases of mixtures store each expert by itself,
where the native classes stack all experts of a layer. `Family.regrouped` lists these. In both
directions the rows of the tensors on one side, one after another, are the rows of the tensors on
the other side.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from unmask.core.errors import ModelError
from unmask.models.family import Family, Regrouped
from unmask.models.layout import renamed

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor of the source, or a part of it."""

    name: str
    """Name of the tensor in the source."""
    expert: int | None = None
    """Index in the first dimension; None for the whole tensor."""
    rows: tuple[int, int] | None = None
    """First row, and the row after the last one; None for all rows."""


@dataclass(frozen=True, slots=True)
class Assembly:
    """A tensor of the destination, and the parts that it consists of."""

    target: str
    """Name in the destination."""
    shape: Shape
    """Shape in the destination."""
    groups: tuple[tuple[Source, ...], ...]
    """Parts whose rows follow each other: one group for each expert of a stacked tensor, and a
    single group for any other tensor."""
    is_stacked: bool = False
    """True if the first dimension counts the groups."""

    @property
    def size(self) -> int:
        """Number of values."""
        return prod(self.shape)


def assembled(
    shapes: Mapping[str, Shape],
    family: Family,
    expected: Mapping[str, Shape],
    *,
    named_natively: bool = False,
    back: bool = False,
) -> list[Assembly]:
    """Return the tensors of the destination, each with its parts.

    Args:
        shapes: shape of each tensor of the source, by name.
        family: entry of the family.
        expected: shapes of the tensors of the native class, by native name.
        named_natively: True if the source has native names. Its experts may still be separate, as
            in releases of autoregressive mixtures.
        back: True to go from the native to the original layout.

    Raises:
        ModelError: a tensor does not belong to the layout, or a part is missing.
    """
    rest = dict(shapes)
    found: list[Assembly] = []
    for rule in family.regrouped:
        here, there = (rule.native, rule.original) if back else (rule.original, rule.native)
        for layer, names in _matching(here, rest):
            found += _regrouped(rule, there, layer, names, shapes, expected)
            for name in (name for part in names.values() for name in part):
                del rest[name]
    for name, shape in rest.items():
        target = name if _keeps_name(name, family, named_natively=named_natively, back=back) else None
        target = renamed(name, family, back=back) if target is None else target
        found.append(Assembly(target, shape, ((Source(name),),)))
    return found


def _keeps_name(name: str, family: Family, *, named_natively: bool, back: bool) -> bool:
    """Return True if a tensor has its target's name already: a native name on the way to the native
    layout, or a separate expert on the way back."""
    if not back:
        return named_natively
    of_experts = (pattern for rule in family.regrouped for pattern in rule.original if "{e}" in pattern)
    return any(_pattern(pattern).fullmatch(name) for pattern in of_experts)


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\{e\}", r"(?P<e>\d+)"))


def _matching(patterns: Sequence[str], names: Mapping[str, Shape]) -> Iterator[tuple[str, dict[int, list[str]]]]:
    """Yield each layer that has tensors of a rule, with their names: a list for each expert, or a
    single list, in the order of the patterns.

    Raises:
        ModelError: a layer lacks one of the tensors.
    """
    layers: dict[str, dict[int, dict[int, str]]] = {}
    for place, pattern in enumerate(patterns):
        compiled = _pattern(pattern)
        for name in names:
            if match := compiled.fullmatch(name):
                expert = int(match["e"]) if "{e}" in pattern else 0
                layers.setdefault(match["i"], {}).setdefault(expert, {})[place] = name
    for layer, experts in layers.items():
        for expert in range(len(experts)):
            for place, pattern in enumerate(patterns):
                if place not in experts.get(expert, {}):
                    missing = pattern.replace("{i}", layer).replace("{e}", str(expert))
                    raise ModelError(f"the checkpoint lacks {missing}. Copy the checkpoint again.")
        yield layer, {expert: [names for _, names in sorted(experts[expert].items())] for expert in sorted(experts)}


def _regrouped(
    rule: Regrouped,
    there: Sequence[str],
    layer: str,
    names: Mapping[int, list[str]],
    shapes: Mapping[str, Shape],
    expected: Mapping[str, Shape],
) -> Iterator[Assembly]:
    """Yield the tensors that replace those of a layer.

    Args:
        rule: rule of the family.
        there: patterns of the names in the destination.
        layer: number of the layer.
        names: names in the source by expert; expert 0 for tensors without experts.
        shapes: shapes of the source's tensors.
        expected: shapes of the native class.
    """
    targets = [pattern.replace("{i}", layer) for pattern in there]
    has_experts = any("{e}" in pattern for pattern in rule.original)
    if has_experts and "{e}" not in there[0]:
        # Separate experts become the groups of one stacked tensor.
        _check_experts(names, len(targets), shapes)
        parts = [[(Source(name), shapes[name][0]) for name in own] for own in names.values()]
        sizes = [expected[target][1] for target in targets] if set(targets) <= expected.keys() else None
        cut = [_cut(own, len(targets), sizes) for own in parts]
        width = shapes[names[0][0]][1:]
        for place, target in enumerate(targets):
            rows, _ = cut[0][place]
            yield Assembly(target, (len(cut), rows, *width), tuple(own[place][1] for own in cut), is_stacked=True)
        return
    (own,) = names.values()
    if has_experts:
        count, _, inner = shapes[own[0]]
        for expert in range(count):
            sources = [(Source(name, expert), shapes[name][1]) for name in own]
            for target, (rows, group) in zip(targets, _cut(sources, len(targets), None), strict=True):
                yield Assembly(target.replace("{e}", str(expert)), (rows, inner), (group,))
        return
    sizes = [expected[target][0] for target in targets] if set(targets) <= expected.keys() else None
    cut_rows = _cut([(Source(name), shapes[name][0]) for name in own], len(targets), sizes)
    for target, (rows, group) in zip(targets, cut_rows, strict=True):
        yield Assembly(target, (rows, *shapes[own[0]][1:]), (group,))


def _check_experts(names: Mapping[int, list[str]], num_targets: int, shapes: Mapping[str, Shape]) -> None:
    """Check that all experts of a layer have equal shapes, and that tensors that become one tensor
    do, because the native class divides it into equal parts.

    Raises:
        ModelError: names a tensor of another shape.
    """
    for own in names.values():
        for place, name in enumerate(own):
            first = names[0][place if num_targets > 1 else 0]
            if shapes[name] != shapes[first]:
                raise ModelError(
                    f"{name} has the shape {list(shapes[name])}, and {first} has {list(shapes[first])}. They must be equal: "
                    "copy the checkpoint again."
                )


def _cut(
    sources: Sequence[tuple[Source, int]], count: int, sizes: Sequence[int] | None
) -> list[tuple[int, tuple[Source, ...]]]:
    """Divide the rows of sources, which follow each other, among `count` tensors.

    Args:
        sources: parts of the source, each with its number of rows.
        count: number of tensors.
        sizes: number of rows of each tensor; equal numbers if None.

    Returns:
        The number of rows and the parts of each tensor. The last one gets what is left, so a wrong
        size shows in its shape.
    """
    total = sum(rows for _, rows in sources)
    wanted = [*(sizes or [total // count] * count)][:-1]
    borders = [0, *(min(total, sum(wanted[: i + 1])) for i in range(len(wanted))), total]
    found = []
    for low, high in zip(borders, borders[1:], strict=False):
        group, start = [], 0
        for source, rows in sources:
            first, last = max(low - start, 0), min(high - start, rows)
            if first < last:
                whole = (first, last) == (0, rows)
                group.append(source if whole else Source(source.name, source.expert, (first, last)))
            start += rows
        found.append((high - low, tuple(group)))
    return found
