"""Tests of the base classes of settings: immutability, unknown keys, and how values are read."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import yaml
from pydantic import ValidationError

from unmask.core.config import EvalConfig, OptimConfig, SamplerConfig
from unmask.core.errors import ConfigError
from unmask.core.settings import Config


def test_off_is_a_word_although_yaml_reads_it_as_false() -> None:
    assert SamplerConfig.model_validate({"cache": yaml.safe_load("off")}).cache == "off"
    with pytest.raises(ValidationError):
        SamplerConfig.model_validate({"cache": yaml.safe_load("on")})


@pytest.mark.parametrize("kind", [SamplerConfig, OptimConfig, EvalConfig])
def test_settings_are_immutable_refuse_unknown_keys_and_explain_every_field(kind: type[Config]) -> None:
    setting = kind()
    name = next(iter(kind.model_fields))
    with pytest.raises(ConfigError, match=rf"^{kind.section}\.{name} cannot be set .*load_recipe\(recipe, "):
        setattr(setting, name, getattr(setting, name))
    with pytest.raises(ValidationError, match="Extra inputs"):
        kind.model_validate({"no_such_setting": 1})
    assert all(field.description for field in kind.model_fields.values())


def test_a_path_that_begins_with_a_tilde_is_in_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")

    class Paths(Config):
        one: str = ""
        several: tuple[str, ...] = ()

    read = Paths.model_validate({"one": "~/x", "several": ["~/r.py:f", "a~/b"]})
    assert (read.one, read.several) == ("/home/someone/x", ("/home/someone/r.py:f", "a~/b"))
    assert Paths(one="~").one == "/home/someone"


def test_a_named_tuple_is_not_a_list_of_paths() -> None:
    class Pair(NamedTuple):
        one: str
        other: str

    with pytest.raises(ValidationError, match="extra_forbidden"):
        SamplerConfig.model_validate({"policy": Pair("~/a", "b")})
