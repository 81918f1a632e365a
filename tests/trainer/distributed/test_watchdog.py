"""Who is stuck: read from what the processes tell of themselves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from unmask.core.errors import LostProcessError
from unmask.trainer.distributed.watchdog import History, Place, losses_explained

LIMIT = 10.0


def look(history: History, now: float, *places: Place) -> str | None:
    return history.look(now, dict(enumerate(places)), LIMIT)


def alive(place: Place, looks: int) -> Place:
    return replace(place, looks=looks)


ROLLOUT = Place(7, forwards=30, step=3, phase="rollout and rewards")
EXCHANGE = Place(8, step=3, phase="exchange of rollouts")


def test_a_run_that_gets_on_is_left_alone_however_long_it_takes() -> None:
    history = History(0.0)
    for second in range(100):
        # One of them counts a forward every nine seconds.
        first = replace(ROLLOUT, forwards=second // 9, looks=second)
        assert look(history, float(second), first, alive(EXCHANGE, second)) is None


def test_the_process_that_is_least_far_is_named_with_step_and_phase_when_nobody_gets_on() -> None:
    history = History(0.0)
    found = [look(history, float(s), alive(EXCHANGE, s), alive(ROLLOUT, s), alive(EXCHANGE, s)) for s in range(11)]
    assert found[:10] == [None] * 10
    assert found[10] == (
        "for 10 s no process has got any further. The others (in step 3, exchange of rollouts) wait for "
        "process 1 (step 3, rollout and rewards)"
    )
    assert (history.culprits, history.speaker) == ({1}, 0)


def test_within_a_phase_the_one_with_fewest_forwards_is_named() -> None:
    history = History(0.0)
    ahead = replace(ROLLOUT, forwards=31)
    for s in range(11):
        found = look(history, float(s), alive(ahead, s), alive(ahead, s), alive(ROLLOUT, s))
    assert history.culprits == {2}
    assert found is not None


def test_whoever_waits_in_a_meeting_is_further_than_who_has_yet_to_come_however_many_their_forwards() -> None:
    history = History(0.0)
    # Its rows ended early, so it has run fewer forwards, and has come to where the others are waited for.
    waiting = replace(ROLLOUT, meetings=1, forwards=0)
    found = [look(history, float(s), alive(waiting, s), alive(ROLLOUT, s)) for s in range(11)][-1]
    assert history.culprits == {1}
    assert found is not None


def test_signs_of_life_keep_a_run_alive_and_put_no_process_ahead_of_another() -> None:
    history = History(0.0)
    # The main process writes a large file every eight seconds, then hangs, while the other waits in a meeting.
    writing, waiting = Place(9, step=3, phase="writing a checkpoint"), Place(9, 1, step=3, phase="writing a checkpoint")
    for s in range(40):
        assert look(history, float(s), replace(writing, signs=s // 8, looks=s), alive(waiting, s)) is None
    found = [look(history, float(s), replace(writing, signs=4, looks=s), alive(waiting, s)) for s in range(40, 43)][-1]
    assert history.culprits == {0}
    assert found is not None


def test_a_process_whose_watchdog_is_silent_is_named_first_and_another_speaks() -> None:
    history = History(0.0)
    for s in range(11):
        found = look(history, float(s), alive(EXCHANGE, min(s, 3)), alive(ROLLOUT, s))
    assert history.culprits == {0}
    assert history.speaker == 1
    assert found is not None
    assert found.endswith("wait for process 0 (step 3, exchange of rollouts, and it gives no sign of life)")


def test_where_all_stand_at_the_same_place_nobody_is_accused_alone() -> None:
    history = History(0.0)
    for s in range(11):
        found = look(history, float(s), alive(EXCHANGE, s), alive(EXCHANGE, s))
    assert found is not None
    assert "All stand at the same place: process 0 (step 3, exchange of rollouts), process 1" in found


def test_a_lost_connection_is_told_as_a_lost_process_and_any_other_error_is_left_alone() -> None:
    gloo = "[/src/gloo/transport/tcp/pair.cc:537] Connection closed by peer [127.0.0.1]:1234"
    with pytest.raises(LostProcessError, match=r"is gone \(Connection closed by peer \[127"), losses_explained(2):
        raise RuntimeError(gloo)
    with pytest.raises(RuntimeError, match="shapes differ"), losses_explained(2):
        raise RuntimeError("shapes differ")
    with pytest.raises(RuntimeError, match="Connection closed"), losses_explained(1):
        raise RuntimeError(gloo)
