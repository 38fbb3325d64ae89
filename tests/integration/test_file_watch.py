"""The file watch hears of every way to change a file, by real sequences of system calls."""

import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from runtime.reloading import file_watch
from runtime.reloading.file_watch import FileWatch
from runtime.reloading.watched_places import WatchedPlaces, has_events, look_at

DEADLINE_S = 60.0


@pytest.fixture(params=[False, True], ids=["events", "polling"])
def polls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(file_watch, "POLL_S", 0.05)
    return bool(request.param)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "cart.py").write_text("A = 1\n")
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "app.yaml").write_text("streams: {}\n")
    return tmp_path


@asynccontextmanager
async def watching(project: Path, *data: Path, polls: bool) -> AsyncIterator[FileWatch]:
    flat, trees = frozenset({project}), frozenset({project / "shop", project / "manifests"})
    watch = FileWatch(lambda: WatchedPlaces(flat, trees, frozenset(data)), polls=polls)
    await watch.start()
    try:
        yield watch
    finally:
        await watch.stop()


async def wait_for(watch: FileWatch, path: Path) -> None:
    """Wait until the watch has told of a path."""
    seen: set[Path] = set()
    async with asyncio.timeout(DEADLINE_S):
        while path not in seen:
            seen |= await watch.wait()
            await watch.follow()


def in_place(file: Path) -> None:
    with file.open("r+") as opened:
        opened.write("A = 2\n")


def truncated_and_written_in_pieces(file: Path) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_TRUNC)
    for piece in (b"A ", b"= ", b"2\n"):
        os.write(descriptor, piece)
        os.fsync(descriptor)
    os.close(descriptor)


def renamed_over_it(file: Path) -> None:
    new = file.with_name(f".{file.name}.tmp")
    new.write_text("A = 2\n")
    new.replace(file)


def renamed_to_a_backup_and_written_new(file: Path) -> None:
    file.rename(file.with_name(f"{file.name}~"))
    file.write_text("A = 2\n")
    file.with_name(f"{file.name}~").unlink()


def written_aside_and_linked(file: Path) -> None:
    new = file.with_name("4913")
    new.write_text("A = 2\n")
    file.unlink()
    os.link(new, file)
    new.unlink()


def with_its_old_size_and_time(file: Path) -> None:
    before = file.stat()
    file.write_text("A = 2\n")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    "save",
    [
        in_place,
        truncated_and_written_in_pieces,
        renamed_over_it,
        renamed_to_a_backup_and_written_new,
        written_aside_and_linked,
        with_its_old_size_and_time,
    ],
    ids=lambda save: save.__name__,
)
async def test_every_way_in_which_an_editor_saves_is_noticed(
    project: Path, polls: bool, save: Callable[[Path], None]
) -> None:
    file = project / "shop" / "cart.py"
    async with watching(project, polls=polls) as watch:
        save(file)
        await wait_for(watch, file)
        save(file)  # The second time the file is another one.
        await wait_for(watch, file)


async def test_a_folder_that_is_deleted_and_made_again_is_watched_again(
    project: Path, polls: bool
) -> None:
    folder = project / "manifests"
    async with watching(project, polls=polls) as watch:
        shutil.rmtree(folder)
        await wait_for(watch, folder)
        folder.mkdir()
        await wait_for(watch, folder)
        (folder / "app.yaml").write_text("functions: {}\n")
        await wait_for(watch, folder / "app.yaml")
        (folder / "app.yaml").write_text("streams: {}\n")
        await wait_for(watch, folder / "app.yaml")


async def test_files_of_a_new_subfolder_are_noticed_though_it_was_filled_at_once(
    project: Path, polls: bool
) -> None:
    new = project / "shop" / "prices" / "eu"
    async with watching(project, polls=polls) as watch:
        new.mkdir(parents=True)
        (new / "tax.py").write_text("TAX = 19\n")
        await wait_for(watch, new / "tax.py")


async def test_the_link_that_a_config_map_swaps_is_noticed_though_no_time_changes(
    tmp_path: Path, polls: bool
) -> None:
    (tmp_path / "shop").mkdir()
    mounted = tmp_path / "manifests"
    for version in ("..2026_1", "..2026_2"):
        (mounted / version).mkdir(parents=True)
        (mounted / version / "app.yaml").write_text(f"# {version}\n")
        os.utime(mounted / version / "app.yaml", (1, 1))
    (mounted / "..data").symlink_to("..2026_1")
    (mounted / "app.yaml").symlink_to("..data/app.yaml")
    async with watching(tmp_path, polls=polls) as watch:
        (mounted / "..data_tmp").symlink_to("..2026_2")
        (mounted / "..data_tmp").replace(mounted / "..data")
        async with asyncio.timeout(DEADLINE_S):
            assert await watch.wait()


async def test_a_data_file_outside_of_the_project_is_noticed(
    project: Path, tmp_path_factory: pytest.TempPathFactory, polls: bool
) -> None:
    data = tmp_path_factory.mktemp("data") / "prices.csv"
    data.write_text("1\n")
    async with watching(project, data, polls=polls) as watch:
        data.write_text("2\n")
        await wait_for(watch, data)


async def test_what_is_not_of_the_project_is_neither_watched_nor_told(project: Path) -> None:
    for name in (".venv", "__pycache__", "node_modules", "env"):
        (project / "shop" / name).mkdir()
    (project / "shop" / "env" / "pyvenv.cfg").touch()
    trees = frozenset({project / "shop"})
    places = WatchedPlaces(frozenset(), trees, frozenset())

    folders = places.expanded()

    assert folders == {project, project / "shop"}
    assert not places.concerns(project / "shop" / "log.txt", folders)
    assert not places.concerns(project / "shop" / ".cart.py.swp", folders)
    assert places.concerns(project / "shop" / "cart.py", folders)


async def test_a_folder_that_cannot_be_read_is_left_out(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = project / "shop" / "secret"
    secret.mkdir()
    allowed = os.access
    # The tests may run as root, who may read everything.
    monkeypatch.setattr(os, "access", lambda path, mode: path != secret and allowed(path, mode))
    async with watching(project, polls=False) as watch:
        (project / "shop" / "cart.py").write_text("A = 2\n")
        await wait_for(watch, project / "shop" / "cart.py")
        assert not watch.polls


async def test_steady_writes_beside_it_do_not_delay_a_change(project: Path) -> None:
    file, noise = project / "shop" / "cart.py", project / "shop" / "access.log"
    loop = asyncio.get_running_loop()

    async def write_steadily() -> None:
        with noise.open("a") as opened:
            while True:
                opened.write("x")
                opened.flush()
                await asyncio.sleep(0.002)

    async with watching(project, polls=False) as watch:
        writing = asyncio.create_task(write_steadily())
        delays = []
        for number in range(10):
            saved_s = loop.time()
            file.write_text(f"A = {number}\n")
            await wait_for(watch, file)
            delays.append(loop.time() - saved_s)
        writing.cancel()

    # 50 ms is the debounce; the rest is a busy machine's. The default would be 1.6 s.
    assert sorted(delays)[5] < 0.4


async def test_steady_saves_that_have_events_do_not_make_the_watch_look_at_files(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_watch, "CHECK_S", 0.02)
    file = project / "shop" / "cart.py"
    async with watching(project, polls=False) as watch:
        for number in range(40):
            file.write_text(f"A = {number}\n")
            await wait_for(watch, file)
        assert not watch.polls


async def test_files_are_looked_at_when_no_event_comes(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_watch, "CHECK_S", 0.05)
    monkeypatch.setattr(file_watch, "EVENT_S", 0.05)

    async def deaf(self: FileWatch, folders: frozenset[Path]) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(FileWatch, "_listen", deaf)
    async with watching(project, polls=False) as watch:
        (project / "shop" / "cart.py").write_text("A = 2\n")
        await wait_for(watch, project / "shop" / "cart.py")
        assert watch.polls


def test_ordinary_folders_have_events(tmp_path: Path) -> None:
    assert has_events(tmp_path)


def test_a_look_at_the_files_takes_a_small_part_of_the_time_until_the_next(tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / f"module_{number}.py").write_text("A = 1\n")
    began_s = time.process_time()

    assert len(look_at([tmp_path], [])) == 300

    assert time.process_time() - began_s < file_watch.POLL_S / 4
