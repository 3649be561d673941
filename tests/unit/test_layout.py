"""The state folder's paths: sockets that the kernel takes, folders that are private, one shared-memory folder a state folder."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

import pytest

from hostoffload import layout
from stream.errors import ConfigError


def test_a_short_state_folder_has_its_sockets_inside(tmp_path: Path) -> None:
    state = Path("/srv/ho")
    assert layout.socket_dir(state) == state / "run"
    assert layout.nbd_socket(state) == state / "run" / "nbd.sock"


def test_the_run_folder_may_be_a_link_to_a_private_folder(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    with tempfile.TemporaryDirectory(prefix="ho-run-") as folder:  # short, or its sockets would be elsewhere
        (state / "run").symlink_to(folder)
        layout.make(state)
        assert layout.nbd_socket(state) == Path(folder) / "nbd.sock"
        Path(folder).chmod(0o755)
        with pytest.raises(ConfigError, match="not private"):
            layout.make(state)


def test_a_long_state_folder_has_its_sockets_where_the_kernel_can_bind_them(tmp_path: Path) -> None:
    state = tmp_path / ("x" * 120)
    found = layout.socket_dir(state)
    assert found.parent == Path("/tmp") and str(os.getuid()) in found.name
    layout.make(state)
    try:
        longest = found / ("s" * layout.SOCKET_NAME_BYTES_MAX)
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(str(longest))
        longest.unlink()
    finally:
        found.rmdir()


def test_the_longest_folder_that_is_taken_inside_can_be_bound(tmp_path: Path) -> None:
    room = layout.SOCKET_PATH_BYTES_MAX - layout.SOCKET_NAME_BYTES_MAX - 1 - len("/run")
    state = Path("/" + "y" * (room - 1))
    assert layout.socket_dir(state) == state / "run"
    assert layout.socket_dir(Path(f"{state}y")).parent == Path("/tmp")


def test_each_state_folder_has_shared_memory_of_its_own(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    assert layout.ring_dir(first, "/dev/shm") != layout.ring_dir(second, "/dev/shm")
    assert layout.ring_dir(first, "/dev/shm").parent == Path("/dev/shm")
    first.mkdir()
    (tmp_path / "link").symlink_to(first)
    assert layout.ring_dir(tmp_path / "link", "/x") == layout.ring_dir(first, "/x")  # the same folder by another name


def test_make_gives_folders_to_the_owner_alone_and_may_be_repeated(tmp_path: Path) -> None:
    layout.make(tmp_path / "deep" / "state")
    layout.make(tmp_path / "deep" / "state")
    for name in ("", "run", "status", "log", "agent", "target"):
        assert (tmp_path / "deep" / "state" / name).stat().st_mode & 0o777 == 0o700


def test_a_socket_folder_that_others_may_enter_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "state"
    layout.make(state)
    layout.socket_dir(state).chmod(0o755)
    with pytest.raises(ConfigError, match="not private"):
        layout.make(state)
    layout.socket_dir(state).chmod(0o700)


def test_a_link_in_the_place_of_the_socket_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "folder").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="not private"):
        layout.check_private(tmp_path / "folder")


def test_a_state_folder_that_can_not_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError) as refused:
        layout.make(tmp_path / "file" / "state")
    assert str(tmp_path / "file" / "state") in refused.value.sentence and refused.value.hint


def test_the_default_state_folder() -> None:
    assert layout.default_state_dir({"HOSTOFFLOAD_STATE": "/srv/s"}) == Path("/srv/s")
    other = layout.default_state_dir({"XDG_STATE_HOME": "/home/x/state"})
    assert other == Path("/var/lib/hostoffload" if os.geteuid() == 0 else "/home/x/state/hostoffload")
