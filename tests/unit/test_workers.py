from pathlib import Path

from runtime.process.workers import WorkerPlace, WorkerSpec, divide


def test_functions_that_are_not_isolated_share_as_many_processes_as_asked_for() -> None:
    assert divide({"a": False, "b": False}, 2) == [
        WorkerSpec("1", services=True, peers=2),
        WorkerSpec("2", services=False, peers=2),
    ]


def test_an_isolated_function_has_one_process_whatever_the_number_of_workers() -> None:
    assert divide({"a": False, "b": True}, 2)[2:] == [WorkerSpec("isolated-b", "b")]


def test_one_process_is_left_for_the_host_s_own_work_when_all_functions_are_isolated() -> None:
    assert [worker.name for worker in divide({"a": True}, 1)] == ["1", "isolated-a"]


def test_no_function_s_name_makes_two_processes_one() -> None:
    names = [worker.name for worker in divide({"1": True, "isolated-1": True}, 2)]

    assert len(set(names)) == len(names)


def test_a_place_survives_its_way_to_the_worker() -> None:
    place = WorkerPlace(WorkerSpec("isolated-b", "b"), Path("a b.sock"), succeeds_crash=True)

    assert WorkerPlace.decode(place.encode()) == place
