"""The private names of DeepSpeed: the installed version has all of them, and a missing one is
reported."""

from __future__ import annotations

import pytest

from tests.helpers.messages import raises
from unmask.core.errors import ConfigError
from unmask.trainer.distributed import deepspeed_zero

deepspeed = pytest.importorskip("deepspeed")


def test_the_installed_deepspeed_has_every_private_name_that_we_use() -> None:
    missing = deepspeed_zero.missing_names()
    assert not missing, f"DeepSpeed {deepspeed.__version__} lacks {', '.join(missing)}: adapt deepspeed_zero.py"


def test_a_missing_private_name_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    stage3 = "deepspeed.runtime.zero.stage3"
    monkeypatch.setitem(deepspeed_zero.PRIVATE, stage3, ("fp32_partitioned_groups_flat", "renamed_partitions"))
    monkeypatch.setattr(deepspeed, "__version__", "0.19.99")
    assert deepspeed_zero.missing_names() == [f"{stage3}.renamed_partitions"]
    with raises(ConfigError, "0.19.99", f"{stage3}.renamed_partitions", "pip install"):
        deepspeed_zero.check_installed()
