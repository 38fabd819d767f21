"""Processes of a stalled job tell the first one how far they are, and it says who is behind."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from looplm.distributed import watch
from looplm.distributed.watch import Watch


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Watch]]:
    """Processes 0 and 1 of a job, here as one process."""
    stored: dict[str, str] = {}
    client = SimpleNamespace(key_value_set=stored.__setitem__, blocking_key_value_get=lambda key, _: stored[key])
    monkeypatch.setattr(watch, "_coordination", lambda: (client, "localhost"))
    monkeypatch.setattr(Watch, "current", None)
    both = [Watch(0, 2), Watch(1, 2)]
    yield both
    with ThreadPoolExecutor() as pool:
        list(pool.map(Watch.finish, both))


def told(first: Watch, until: str) -> str:
    limit = time.monotonic() + 10
    while until not in (text := first.behind()) and time.monotonic() < limit:
        time.sleep(0.01)
    return text


def test_who_is_behind_is_named(pair: list[Watch]) -> None:
    first, second = pair
    assert first.behind() == ""
    first.stalled(43)
    assert first.behind() == "process 1 says nothing; the furthest has begun step 43"
    second.stalled(41)
    assert told(first, "41") == "process 1 is behind, at step 41; the furthest has begun step 43"
    second.stalled(44)
    assert told(first, "44") == "process 0 is behind, at step 43; the furthest has begun step 44"
    first.stalled(44)
    assert first.behind() == "nobody of 2 processes is behind; the furthest has begun step 44"
    first.goes_on()
    assert first.behind() == second.behind() == ""
