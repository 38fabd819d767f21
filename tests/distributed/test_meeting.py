"""Those that are left find each other, whoever is lost, and take in who comes back."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from looplm.distributed import meeting
from looplm.distributed.meeting import SIZES, Absent, Meeting, write
from looplm.distributed.slurm import Place


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"BEAT_S": 0.01, "ALIVE_S": 0.4, "WINDOW_S": 0.4, "FIRST_S": 0.8}.items():
        monkeypatch.setattr(meeting, name, seconds)


class Job:
    """The seats of all hosts, and a thread for each that waits."""

    def __init__(self, folder: Path, count: int, pool: ThreadPoolExecutor):
        self.pool = pool
        self.leaving: set[int] = set()
        self.seats = [
            Meeting(folder, Place("127.0.0.1:9", count, number), lambda number=number: number in self.leaving)
            for number in range(count)
        ]

    def start(self, *numbers: int) -> list[Future[Place | int | None]]:
        return [self.pool.submit(self.seats[number].wait) for number in numbers]

    def meet(self, *numbers: int) -> list[Place | int | None]:
        return [waiting.result(timeout=10) for waiting in self.start(*numbers)]


@pytest.fixture
def job(tmp_path: Path):
    with ThreadPoolExecutor(8) as pool:
        made: list[Job] = []

        def make(count: int) -> Job:
            made.append(Job(tmp_path / "group", count, pool))
            return made[-1]

        yield make
        for each in made:
            each.leaving |= set(range(9))


def test_a_job_begins_with_all_at_the_place_that_was_given(job: Callable[[int], Job]) -> None:
    assert job(3).meet(2, 0, 1) == [Place("127.0.0.1:9", 3, number) for number in (2, 0, 1)]


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_whoever_is_lost_the_others_go_on_at_a_place_of_their_own(lost: int, job: Callable[[int], Job]) -> None:
    three, left = job(3), sorted({0, 1, 2} - {lost})
    three.meet(0, 1, 2)
    first, second = three.meet(*left)
    assert isinstance(first, Place)
    assert isinstance(second, Place)
    assert (first.num_processes, first.process_id, second.process_id) == (2, 0, 1)
    assert first.coordinator == second.coordinator != "127.0.0.1:9"
    assert first.coordinator.startswith("127.0.0.1:")
    # Without a further loss they go on at once: nobody waits for the one that was lost before.
    assert [place.num_processes for place in three.meet(*left) if isinstance(place, Place)] == [2, 2]


def test_who_comes_back_is_seen_and_taken_in(job: Callable[[int], Job], tmp_path: Path) -> None:
    two = job(2)
    two.meet(0, 1)
    (alone,) = two.meet(1)
    assert isinstance(alone, Place)
    assert alone.num_processes == 1
    assert two.seats[1].newcomers() == []
    two.seats[0].group = []  # a new process
    (back,) = two.start(0)
    while not (seen := two.seats[1].newcomers()):
        assert not back.done()
    assert seen == [0]
    (other,) = two.meet(1)
    both = (back.result(timeout=10), other)
    assert [place.process_id for place in both if isinstance(place, Place)] == [0, 1]


def test_a_group_is_as_large_as_divides_and_the_rest_waits(job: Callable[[int], Job], tmp_path: Path) -> None:
    four = job(4)
    four.meet(0, 1, 2, 3)
    write(tmp_path / "group" / SIZES, {"sizes": [1, 2, 4]})
    waiting = four.start(0, 2, 3)
    places = [each.result(timeout=10) for each in waiting[:2]]
    assert [place.num_processes for place in places if isinstance(place, Place)] == [2, 2]
    for _ in range(30):
        assert four.seats[0].newcomers() == []  # the spare one would change nothing
    assert not waiting[2].done()
    four.seats[0].end(0)
    assert waiting[2].result(timeout=10) == 0


def test_what_a_dead_process_has_left_is_nobody(job: Callable[[int], Job], tmp_path: Path) -> None:
    two = job(2)
    two.meet(0, 1)
    write(tmp_path / "group" / "0.json", {"nonce": "old", "again": True, "beat": 7})
    write(tmp_path / "group" / "ended.json", {"code": 0, "nonce": "of an earlier job"})
    (place,) = two.meet(1)
    assert isinstance(place, Place)
    assert (place.num_processes, place.process_id) == (1, 0)


def test_a_job_that_lacks_a_host_does_not_begin(job: Callable[[int], Job]) -> None:
    with pytest.raises(Absent, match=r"of 3 processes 1 did not come to .*group within 1 s; start them all"):
        job(3).meet(0, 2)


def test_a_wait_ends_when_it_is_asked_to(job: Callable[[int], Job], tmp_path: Path) -> None:
    two = job(2)
    (waiting,) = two.start(1)
    two.leaving.add(1)
    assert waiting.result(timeout=10) is None
    assert not (tmp_path / "group" / "1.json").exists()
