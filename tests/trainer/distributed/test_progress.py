"""The rank that the others wait for is found from the positions that all ranks publish."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from tests.helpers.messages import raises
from tests.helpers.processes import StoreOfOne
from unmask.core.errors import LostProcessError
from unmask.trainer.distributed.progress import Position, Progress, Stall, _open_store, lost_ranks_explained

LIMIT = 10.0


ROLLOUT = Position(7, forwards=30, step=3, phase="rollout and rewards")
EXCHANGE = Position(8, step=3, phase="exchange of rollouts")


def look(stall: Stall, now: float, *positions: Position) -> str | None:
    return stall.message(now, positions)


def alive(position: Position, beats: int) -> Position:
    return position._replace(beats=beats)


def test_a_run_that_makes_progress_continues_however_long_it_takes() -> None:
    stall = Stall(LIMIT, 0.0)
    for second in range(100):
        # One rank counts a forward pass every nine seconds.
        first = ROLLOUT._replace(forwards=second // 9, beats=second)
        assert look(stall, float(second), first, alive(EXCHANGE, second)) is None


def test_the_rank_with_the_lowest_counts_is_named_with_its_step_and_phase() -> None:
    stall = Stall(LIMIT, 0.0)
    messages = [look(stall, float(s), alive(EXCHANGE, s), alive(ROLLOUT, s), alive(EXCHANGE, s)) for s in range(11)]
    assert messages[:10] == [None] * 10
    assert messages[10] == (
        "no rank has made progress for 10 s. The others (step 3, exchange of rollouts) wait for rank 1 (step 3, rollout and "
        "rewards)"
    )
    assert stall.missing == {1}


def test_within_a_phase_the_rank_with_the_fewest_forward_passes_is_named() -> None:
    stall = Stall(LIMIT, 0.0)
    ahead = ROLLOUT._replace(forwards=31)
    for s in range(11):
        message = look(stall, float(s), alive(ahead, s), alive(ahead, s), alive(ROLLOUT, s))
    assert stall.missing == {2}
    assert message is not None


def test_a_rank_that_waits_in_a_collective_is_ahead_of_one_that_has_not_reached_it() -> None:
    stall = Stall(LIMIT, 0.0)
    # Its rows ended early. It has run fewer forward passes, and waits for the other rank.
    waiting = ROLLOUT._replace(collectives=1, forwards=0)
    message = [look(stall, float(s), alive(waiting, s), alive(ROLLOUT, s)) for s in range(11)][-1]
    assert stall.missing == {1}
    assert message is not None


def test_signs_of_life_keep_a_run_alive_and_do_not_put_a_rank_ahead() -> None:
    stall = Stall(LIMIT, 0.0)
    # The main rank writes a large file every eight seconds and then hangs, while the other rank
    # waits in a collective.
    writing = Position(9, step=3, phase="writing a checkpoint")
    waiting = writing._replace(collectives=1)
    for s in range(40):
        assert look(stall, float(s), writing._replace(signs=s // 8, beats=s), alive(waiting, s)) is None
    message = [look(stall, float(s), writing._replace(signs=4, beats=s), alive(waiting, s)) for s in range(40, 43)][-1]
    assert stall.missing == {0}
    assert message is not None


def test_the_bytes_of_a_folder_count_as_signs_of_life_while_it_is_written(tmp_path: Path) -> None:
    progress = Progress(0, 1, LIMIT, tmp_path)
    progress._store = StoreOfOne()

    def signs() -> int:
        (position,) = progress._exchange()
        return position.signs

    folder = tmp_path / "model"
    (folder / "adapter").mkdir(parents=True)
    file = folder / "adapter" / "weights"
    progress.alive()
    with progress.writing(folder):
        found = [signs()]
        for size in (10, 10, 25):
            file.write_bytes(bytes(size))
            found.append(signs())
        file.unlink()
        folder.rename(tmp_path / "gone")
        found.append(signs())
    file.parent.mkdir(parents=True)
    file.write_bytes(bytes(5))
    found.append(signs())
    # A file that has stopped growing is no sign, nor is one that nobody writes.
    assert found == [1, 11, 11, 26, 1, 1]


def test_a_rank_that_has_stopped_publishing_is_named_first() -> None:
    stall = Stall(LIMIT, 0.0)
    for s in range(11):
        message = look(stall, float(s), alive(EXCHANGE, min(s, 3)), alive(ROLLOUT, s))
    assert stall.missing == {0}
    assert message is not None
    assert message.endswith("wait for rank 0 (step 3, exchange of rollouts, no sign of life)")


def test_no_rank_is_singled_out_if_all_are_at_the_same_point() -> None:
    stall = Stall(LIMIT, 0.0)
    for s in range(11):
        message = look(stall, float(s), alive(EXCHANGE, s), alive(EXCHANGE, s))
    assert message is not None
    assert "All ranks are at the same point: rank 0 (step 3, exchange of rollouts), rank 1" in message


def test_a_lost_connection_is_reported_as_a_lost_rank_and_other_errors_pass() -> None:
    gloo = "[/src/gloo/transport/tcp/pair.cc:537] Connection closed by peer [127.0.0.1]:1234"
    with raises(LostProcessError, "Connection closed by peer [127", "--resume"), lost_ranks_explained(2):
        raise RuntimeError(gloo)
    with pytest.raises(RuntimeError, match="shapes differ"), lost_ranks_explained(2):
        raise RuntimeError("shapes differ")
    with pytest.raises(RuntimeError, match="Connection closed"), lost_ranks_explained(1):
        raise RuntimeError(gloo)


def test_ranks_that_the_launcher_restarts_read_nothing_of_their_predecessors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(host.port))
    first = []
    for start in ("0", "0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", start)
        store = _open_store()
        first.append(store.add("reported", 1) == 1)
    # Without keys of their own, the restarted ranks would all take the stall for reported.
    assert first == [True, False, True]
