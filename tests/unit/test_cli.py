"""Arguments to calls, errors to one line and a status, with a bridge that is not one."""

from __future__ import annotations

import json
import logging
import os
import pwd
import signal
import subprocess
import sys
import threading
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

import pytest

import hvbridge.bridge
from hvbridge import control, doctor, mounts
from hvbridge.bridge import MountOptions
from hvbridge.cli import inspecting, logs, main, mounting, options, preflight, progress, unmounting
from hvbridge.cli.common import human_size, printable
from hvbridge.config import Paths
from hvbridge.control import ControlServer, socket_path
from hvbridge.doctor import Check, State
from hvbridge.errors import ChannelError, HvbridgeError, UsageError
from hvbridge.host import Host


@pytest.fixture(autouse=True)
def own_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    """No test sees the user's mounts, or leaves loggers behind."""
    monkeypatch.setenv("HVBRIDGE_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("HVBRIDGE_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(mounts, "mounts", lambda table=None: [])
    return Paths()


@pytest.fixture
def mountpoint(tmp_path: Path) -> Path:
    path = tmp_path.resolve() / "mnt"
    path.mkdir()
    return path


class FakeBridge:
    """Records how it was made; ends when it is stopped, or at once."""

    made: ClassVar[list[FakeBridge]] = []
    start_error: ClassVar[Exception | None] = None
    stop_error: ClassVar[HvbridgeError | None] = None
    on_wait: ClassVar[Any] = None
    exit_status: ClassVar[int] = 0

    def __init__(self, channel_url: str, mountpoint: Path, options: MountOptions, paths: Paths) -> None:
        self.channel, self.mountpoint, self.options, self.paths = channel_url, mountpoint, options, paths
        self.deadlines: list[float] = []
        self.ended = threading.Event()
        self.made.append(self)

    def start(self) -> None:
        if self.start_error is not None:
            raise self.start_error

    def wait(self) -> int:
        if self.on_wait is not None:
            type(self).on_wait(self)
            assert self.ended.wait(10)
        return self.exit_status

    def stop(self, *, deadline: float, progress: control.Progress | None = None) -> bool:
        self.deadlines.append(deadline)
        if self.stop_error is not None:
            self.ended.set()
            raise self.stop_error
        if progress is not None:
            progress({"pending": [{"path": "/a", "size": 1}]})
        if self.deadlines[-1] == 0.0 or self.on_wait is not two_signals:
            self.ended.set()
        return True

    def status(self) -> dict[str, Any]:
        return {"mountpoint": str(self.mountpoint), "state": "waiting", "pid": os.getpid()}


@pytest.fixture
def bridge(monkeypatch: pytest.MonkeyPatch) -> type[FakeBridge]:
    """Stands in for the real one, on a host that has all that it needs."""

    class Bridge(FakeBridge):
        made: ClassVar[list[FakeBridge]] = []

    monkeypatch.setattr(hvbridge.bridge, "Bridge", Bridge)
    monkeypatch.setattr(preflight, "require_fuse", lambda host, allow_other: None)
    return Bridge


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr."""
    status = main(arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


# --- help and errors ------------------------------------------------------


@pytest.mark.parametrize("command", ["", "mount", "umount", "status", "share", "doctor", "demo"])
def test_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    status, out, err = run(capsys, *command.split(), "--help")
    assert (status, err) == (0, "")
    assert out.startswith(f"Usage: hvbridge {command}".rstrip())
    assert all(len(line) <= 100 for line in out.splitlines())


def test_help_shows_examples_statuses_and_every_mount_option(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "--help")
    assert "Examples:" in out
    assert "Exit statuses:" in out
    _, out, _ = run(capsys, "mount", "--help")
    for name in ("ro", "rw", "allow_other", "exec", "suid", "dev", *options.VALUES, *options.PASSED_ON):
        assert name in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == (0, f"hvbridge, version {hvbridge.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["frob"], "No such command 'frob'"),
        (["mount", "unix:///x"], "Missing argument 'MOUNTPOINT'"),
        (["mount", "unix:///x", "/", "--frob"], "No such option"),
        (["mount", "unix:///x", "/", "-o", "frob"], "unknown mount option 'frob'; known are ro, rw, "),
        (["mount", "unix:///x", "/", "-r", "-o", "rw"], "contradict"),
        (["umount", "/", "--timeout", "-1"], "-1"),
    ],
)
def test_usage_errors(capsys: pytest.CaptureFixture[str], arguments: list[str], error: str) -> None:
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("hvbridge: ")
    assert error in err
    assert "Traceback" not in err


def test_an_error_is_one_line_without_what_a_terminal_would_act_on(
    capsys: pytest.CaptureFixture[str], bridge: type[FakeBridge], mountpoint: Path
) -> None:
    bridge.start_error = ChannelError("the peer said \x1b[2J\nand more")
    status, _, err = run(capsys, "mount", "-f", "unix:///x", str(mountpoint))
    assert (status, err) == (1, "hvbridge: the peer said \\x1b[2J\\nand more\n")


def test_tracebacks_only_on_demand(
    capsys: pytest.CaptureFixture[str], bridge: type[FakeBridge], mountpoint: Path
) -> None:
    bridge.start_error = ZeroDivisionError("oops")
    command = ["mount", "-f", "unix:///x", str(mountpoint)]
    status, _, err = run(capsys, *command)
    assert status == 1
    assert "unexpected ZeroDivisionError: oops" in err
    assert "Traceback" not in err
    for loud in (["-vv", *command], [*command, "-vv"], ["-v", *command, "-v"]):
        status, _, err = run(capsys, *loud)
        assert status == 1
        assert "Traceback" in err


def test_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hvbridge", "--version"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == f"hvbridge, version {hvbridge.__version__}\n"


def test_other_commands_do_without_libfuse() -> None:
    """status and help work on a host where fusepy cannot be imported."""
    code = (
        "import sys; sys.modules['fuse'] = None; sys.modules['libvirt'] = None\n"
        "from hvbridge.cli import main; status = main(['status']); print('served'); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.splitlines()[-1], done.stderr) == (0, "served", "")


# --- values ---------------------------------------------------------------


def test_mount_options() -> None:
    me = pwd.getpwuid(os.getuid())
    text = f"ro,uid={me.pw_name},gid={me.pw_gid},umask=077,grace=2.5,cache_size=2G,exec,noatime"
    assert options.mount_options(
        [text, "allow_other,,spool=/var/x,timeout=9,actimeo=1,sync", "noexec,_netdev,x-a.b"]
    ) == {
        "read_only": True,
        "uid": me.pw_uid,
        "gid": me.pw_gid,
        "umask": 0o077,
        "grace": 2.5,
        "cache_size": 2 << 30,
        "exec_": False,
        "extra": ("noatime", "sync"),
        "allow_other": True,
        "spool": Path("/var/x"),
        "timeout": 9.0,
        "actimeo": 1.0,
    }


def test_the_last_of_a_kind_holds() -> None:
    assert options.mount_options(["ro,rw", "uid=1,uid=2"]) == {"read_only": False, "uid": 2}


def test_every_value_is_a_field_of_the_bridge() -> None:
    assert set(options.OptionValues.__annotations__) == {field.name for field in fields(MountOptions)}


@pytest.mark.parametrize(
    "text",
    [
        "uid",
        "uid=",
        "uid=no-such-user",
        "uid=-1",
        "uid=4294967295",
        "gid=no-such-group",
        "umask=8",
        "umask=1000",
        "umask=-1",
        "grace=soon",
        "grace=-1",
        "grace=nan",
        "timeout=inf",
        "cache_size=lots",
        "cache_size=-1",
        "cache_size=1.5G",
        "ro=1",
        "fsname=x",
        " ro",
    ],
)
def test_options_that_cannot_be(text: str) -> None:
    with pytest.raises(UsageError):
        options.mount_options([text])


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("512", 512), ("1k", 1024), ("512M", 512 << 20), ("2GiB", 2 << 30), ("1TB", 1 << 40)],
)
def test_sizes(text: str, size: int) -> None:
    assert options.size(text) == size


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (200 << 20, "200 MiB"), (1 << 50, "1024.0 TiB")],
)
def test_human_sizes(size: int, text: str) -> None:
    assert human_size(size) == text


def test_printable() -> None:
    assert printable("Größe \x1b[31m\n\u202e\ud800") == "Größe \\x1b[31m\\n\\u202e\\ud800"


# --- mount ----------------------------------------------------------------


def test_mount_hands_everything_to_the_bridge(
    capsys: pytest.CaptureFixture[str], bridge: type[FakeBridge], mountpoint: Path, own_paths: Paths
) -> None:
    status, out, err = run(
        capsys,
        "mount",
        "unix:///x",
        str(mountpoint),
        *["-f", "-r", "--allow-other", "--uid", "7", "--gid", "8", "--umask", "027", "-o", "timeout=9"],
    )
    assert (status, out, err) == (0, "", "")
    (made,) = bridge.made
    assert (made.channel, made.mountpoint, made.paths) == ("unix:///x", mountpoint, own_paths)
    assert made.options == MountOptions(
        read_only=True, allow_other=True, uid=7, gid=8, umask=0o027, timeout=9.0
    )


def test_options_before_flags_are_kept(
    capsys: pytest.CaptureFixture[str], bridge: type[FakeBridge], mountpoint: Path
) -> None:
    run(capsys, "mount", "unix:///x", str(mountpoint), "-f", "-o", "ro,allow_other,uid=7,umask=027")
    assert bridge.made[0].options == MountOptions(read_only=True, allow_other=True, uid=7, umask=0o027)


def test_the_status_of_the_bridge_is_the_exit_status(
    capsys: pytest.CaptureFixture[str], bridge: type[FakeBridge], mountpoint: Path
) -> None:
    bridge.exit_status = 1
    assert run(capsys, "mount", "stdio:", str(mountpoint))[0] == 1


def test_a_mount_answers_while_it_is_served_and_is_forgotten_after(
    capsys: pytest.CaptureFixture[str], bridge: type[FakeBridge], mountpoint: Path, own_paths: Paths
) -> None:
    seen: list[dict[str, Any]] = []

    def look(made: FakeBridge) -> None:
        seen.append(control.ask_status(socket_path(own_paths.runtime, mountpoint)))
        with pytest.raises(UsageError, match="another hvbridge"):
            mounting.serve(mounting.Request("unix:///x", mountpoint, {}), lambda: None)
        made.ended.set()

    bridge.on_wait = look
    assert run(capsys, "mount", "-f", "unix:///x", str(mountpoint))[0] == 0
    assert seen[0]["mountpoint"] == str(mountpoint)
    assert control.sockets(own_paths.runtime) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_patiently(
    capsys: pytest.CaptureFixture[str], bridge: type[FakeBridge], mountpoint: Path, number: int
) -> None:
    bridge.on_wait = lambda made: os.kill(os.getpid(), number)
    before = signal.getsignal(number)
    assert run(capsys, "mount", "-f", "unix:///x", str(mountpoint))[0] == 0
    assert bridge.made[0].deadlines == [mounting.STOP_SECONDS]
    assert signal.getsignal(number) == before


def two_signals(made: FakeBridge) -> None:
    """The first does not end this bridge, as if an upload went on."""
    os.kill(os.getpid(), signal.SIGTERM)
    while not made.deadlines:
        assert not made.ended.wait(0.01)
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_second_signal_stops_at_once(
    capsys: pytest.CaptureFixture[str], bridge: type[FakeBridge], mountpoint: Path
) -> None:
    bridge.on_wait = two_signals
    assert run(capsys, "mount", "-f", "unix:///x", str(mountpoint))[0] == 0
    assert bridge.made[0].deadlines == [mounting.STOP_SECONDS, 0.0]


def test_a_stop_that_fails_is_told(
    capsys: pytest.CaptureFixture[str], bridge: type[FakeBridge], mountpoint: Path
) -> None:
    bridge.stop_error = HvbridgeError("it is busy")
    bridge.on_wait = lambda made: os.kill(os.getpid(), signal.SIGINT)
    assert "hvbridge: it is busy" in run(capsys, "mount", "-f", "unix:///x", str(mountpoint))[2]


# --- what mount makes sure of ---------------------------------------------


def test_mountpoints_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="mkdir -p"):
        preflight.require_mountpoint(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="not a folder"):
        preflight.require_mountpoint(tmp_path / "file")


@pytest.mark.parametrize("dead", [True, False])
def test_a_dead_mount_is_taken_down_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dead: bool
) -> None:
    taken: list[tuple[Path, bool]] = []
    there = mounts.Mount(tmp_path, mounts.FSTYPE, "unix:///x", ("rw",))
    monkeypatch.setattr(mounts, "mount_at", lambda path: there)
    monkeypatch.setattr(mounts, "is_dead", lambda path: dead)
    monkeypatch.setattr(mounts, "unmount", lambda path, lazy: taken.append((path, lazy)))
    if dead:
        preflight.require_mountpoint(tmp_path)
        assert taken == [(tmp_path, True)]
    else:
        with pytest.raises(UsageError, match="already"):
            preflight.require_mountpoint(tmp_path)
        assert taken == []


def fake_check(name: str, state: State) -> Any:
    return lambda host: Check(name, "mount", state, f"no {name}", f"get {name}")


@pytest.mark.parametrize("lacking", ["fuse_device", "libfuse2", "fusermount"])
def test_what_the_host_lacks_is_named_with_its_mend(monkeypatch: pytest.MonkeyPatch, lacking: str) -> None:
    for name in ("fuse_device", "libfuse2", "fusermount"):
        state = State.MISSING if name == lacking else State.OK
        monkeypatch.setattr(doctor, name, fake_check(name, state))
    monkeypatch.setattr(Host, "uid", 1000)
    with pytest.raises(
        HvbridgeError, match=f"{lacking}: no {lacking}; mend it with: get {lacking}"
    ) as caught:
        preflight.require_fuse(Host(), allow_other=False)
    assert caught.value.exit_code == 1


def test_allow_other_must_be_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("fuse_device", "libfuse2", "fusermount"):
        monkeypatch.setattr(doctor, name, fake_check(name, State.OK))
    monkeypatch.setattr(doctor, "user_allow_other", fake_check("allow_other", State.WARN))
    preflight.require_fuse(Host(), allow_other=False)
    with pytest.raises(UsageError, match=r"--allow-other: .* mend it with: get allow_other"):
        preflight.require_fuse(Host(), allow_other=True)


# --- umount ---------------------------------------------------------------


@pytest.fixture
def served(mountpoint: Path, own_paths: Paths) -> Any:
    """A bridge behind its control socket, without a mount."""
    server = ControlServer(socket_path(own_paths.runtime, mountpoint))
    server.claim()
    made = FakeBridge("unix:///x", mountpoint, MountOptions(), own_paths)
    server.start(made)
    yield made
    server.close()


@pytest.mark.parametrize(
    ("arguments", "deadline"), [([], 300.0), (["--timeout", "2.5"], 2.5), (["--force"], 0.0)]
)
def test_umount_asks_the_bridge(
    capsys: pytest.CaptureFixture[str], served: FakeBridge, arguments: list[str], deadline: float
) -> None:
    assert run(capsys, "umount", str(served.mountpoint), *arguments) == (0, "", "")
    assert served.deadlines == [deadline]


def test_umount_tells_what_was_not_uploaded(
    capsys: pytest.CaptureFixture[str], served: FakeBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "ask_stop", lambda path, deadline, progress: False)
    status, _, err = run(capsys, "umount", str(served.mountpoint))
    assert status == 1
    assert "not everything was uploaded" in err


def test_umount_of_nothing(capsys: pytest.CaptureFixture[str], mountpoint: Path) -> None:
    assert run(capsys, "umount", str(mountpoint)) == (1, "", f"hvbridge: {mountpoint} is not mounted\n")


def test_umount_of_what_is_not_ours(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    proc = mounts.Mount(Path("/proc"), "proc", "proc", ("rw",))
    monkeypatch.setattr(mounts, "mounts", lambda table=None: [proc])
    status, _, err = run(capsys, "umount", "/proc")
    assert status == 2
    assert "/proc is a mount of type proc, not one of hvbridge" in err


def test_umount_cleans_up_after_a_crash(
    capsys: pytest.CaptureFixture[str], mountpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[tuple[Path, bool]] = []
    there = mounts.Mount(mountpoint, mounts.FSTYPE, "unix:///x", ("rw", f"user_id={os.geteuid()}"))
    monkeypatch.setattr(mounts, "mount_at", lambda path, table=None: there)
    monkeypatch.setattr(mounts, "unmount", lambda path, lazy: taken.append((path, lazy)))
    assert run(capsys, "umount", str(mountpoint))[0] == 0
    assert taken == [(mountpoint, False)]


def test_root_finds_a_users_bridge(
    mountpoint: Path, monkeypatch: pytest.MonkeyPatch, own_paths: Paths
) -> None:
    there = mounts.Mount(mountpoint, mounts.FSTYPE, "unix:///x", ("rw", "user_id=1000"))
    monkeypatch.setattr(mounts, "mount_at", lambda path: there)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert unmounting.runtime_for(mountpoint) == Path("/run/user/1000/hvbridge")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert unmounting.runtime_for(mountpoint) == own_paths.runtime


# --- status ---------------------------------------------------------------

STATUS: dict[str, Any] = {
    "mountpoint": "/srv/client",
    "channel": "spice-listen://127.0.0.1:5930",
    "pid": 4711,
    "state": "open",
    "client": "10.0.0.5",
    "server": "phodav",
    "since": "2024-05-01T10:00:00+00:00",
    "read_only": False,
    "streams": 3,
    "bytes_in": 5 << 20,
    "bytes_out": 100,
    "cache": {"bytes": 2048, "files": 2},
    "open_files": 1,
    "pending": [
        {"path": "/notes.txt", "size": 3 << 20, "state": "uploading", "error": None, "spool": "/s/1"}
    ],
    "failed": [{"path": "/x\x1b[1m", "size": 10, "state": "failed", "error": "disk full", "spool": "/s/2"}],
    "last_error": "no client",
}


def test_status_for_people() -> None:
    left = {
        "path": "/old",
        "size": 5,
        "state": "writing",
        "error": None,
        "mountpoint": "/mnt",
        "spool": "/s/3",
    }
    dead = {"mountpoint": "/mnt/b", "channel": "unix:///x"}
    text = inspecting.describe({"mounts": [STATUS], "dead": [dead], "left_over": [left]})
    assert text.splitlines() == [
        "/srv/client  open, read-write: 10.0.0.5 (phodav)",
        "  channel  spice-listen://127.0.0.1:5930",
        "  since    2024-05-01T10:00:00+00:00, process 4711",
        "  traffic  5.0 MiB in, 100 B out, 3 streams",
        "  cached   2.0 KiB in 2 files, 1 files open",
        "  error    no client",
        "  pending  /notes.txt  3.0 MiB, uploading; content in /s/1",
        "  failed   /x\\x1b[1m  10 B, failed: disk full; content in /s/2",
        "/mnt/b  dead: its bridge is gone",
        "  → hvbridge umount /mnt/b",
        "left over in the spool by bridges that are gone:",
        "   /mnt: /old  5 B, writing; content in /s/3",
    ]


def test_status_lists_what_is_served(capsys: pytest.CaptureFixture[str], served: FakeBridge) -> None:
    status, out, _ = run(capsys, "status", "--json")
    assert status == 0
    assert json.loads(out)["mounts"] == [served.status()]
    status, out, _ = run(capsys, "status", str(served.mountpoint), "--json")
    assert json.loads(out)["mounts"] == [served.status()]
    status, out, _ = run(capsys, "status")
    assert out.startswith(f"{served.mountpoint}  waiting")


def test_status_of_nothing(capsys: pytest.CaptureFixture[str], mountpoint: Path) -> None:
    assert run(capsys, "status") == (0, "no mounts\n", "")
    status, _, err = run(capsys, "status", str(mountpoint))
    assert (status, err) == (1, f"hvbridge: {mountpoint} has no hvbridge that answers here\n")


def test_status_names_dead_mounts_of_ours(
    capsys: pytest.CaptureFixture[str], mountpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    me = f"user_id={os.geteuid()}"
    table = [
        mounts.Mount(mountpoint, mounts.FSTYPE, "unix:///x", (me,)),
        mounts.Mount(mountpoint / "live", mounts.FSTYPE, "unix:///x", (me,)),
        mounts.Mount(mountpoint / "foreign", mounts.FSTYPE, "unix:///x", ("user_id=4000000",)),
        mounts.Mount(mountpoint / "other", "fuse.sshfs", "host:", (me,)),
    ]
    monkeypatch.setattr(mounts, "mounts", lambda table_=None: table)
    monkeypatch.setattr(mounts, "is_dead", lambda path: path.name != "live")
    dead = json.loads(run(capsys, "status", "--json")[1])["dead"]
    assert dead == [{"mountpoint": str(mountpoint), "channel": "unix:///x"}]
    status, _, err = run(capsys, "status", str(mountpoint))
    assert status == 1
    assert f"hvbridge umount {mountpoint}" in err


def test_status_of_a_bridge_that_hangs(
    capsys: pytest.CaptureFixture[str], served: FakeBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> dict[str, Any]:
        raise HvbridgeError("no whole line within 5 s")

    monkeypatch.setattr(control, "ask_status", refuse)
    status, out, _ = run(capsys, "status")
    assert status == 0
    assert "does not answer: no whole line within 5 s" in out


def test_status_names_content_that_nobody_uploads(
    capsys: pytest.CaptureFixture[str], served: FakeBridge, own_paths: Paths
) -> None:
    spool = own_paths.state / "spool" / "abc"
    spool.mkdir(parents=True)

    def note(name: str, pid: int) -> dict[str, Any]:
        entry = {"path": f"/{name}", "size": 3, "state": "uploading", "error": None, "mountpoint": "/mnt"}
        entry |= {"pid": pid, "data": f"../{name}.data", "created": 1}
        (spool / f"{name}.json").write_text(json.dumps(entry))
        return entry

    note("live", os.getpid())
    note("lost", -1)
    (spool / "torn.json").write_text('{"path": "/torn"')
    (spool / "list.json").write_text("[]")
    left = json.loads(run(capsys, "status", "--json")[1])["left_over"]
    assert [entry["path"] for entry in left] == [None, "/lost", None]
    assert left[1]["spool"] == str(spool / "lost.data")
    assert [entry["spool"] for entry in (left[0], left[2])] == [
        str(spool / "list.json"),
        str(spool / "torn.json"),
    ]
    assert "/lost" in run(capsys, "status")[1]


# --- share, doctor --------------------------------------------------------


@pytest.mark.parametrize("url", ["unix:///x", "nonsense"])
def test_share_needs_a_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path, url: str) -> None:
    status, _, err = run(capsys, "share", str(tmp_path / "absent"), url)
    assert status == 2
    assert "not a folder" in err


def test_share_needs_a_channel(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(capsys, "share", str(tmp_path), "nonsense")[0] == 2


@pytest.mark.parametrize(("state", "status"), [(State.OK, 0), (State.WARN, 0), (State.MISSING, 1)])
def test_doctor_judges_by_what_mount_needs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, state: State, status: int
) -> None:
    other = Check("qemu", "guests", State.MISSING, "none", "get qemu")
    monkeypatch.setattr(doctor, "CHECKS", (fake_check("fuse", state), lambda host: other))
    assert run(capsys, "doctor")[0] == status
    code, out, _ = run(capsys, "doctor", "--json")
    assert code == status
    assert json.loads(out)[1] == other.as_dict()


# --- progress and logs ----------------------------------------------------


class Terminal:
    """A stream that keeps what was written."""

    def __init__(self, tty: bool) -> None:
        self.tty, self.text = tty, ""

    def isatty(self) -> bool:
        return self.tty

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass


def test_progress_is_for_terminals() -> None:
    for tty in (True, False):
        terminal = Terminal(tty)
        line = progress.ProgressLine(terminal)  # type: ignore[arg-type]
        line({"pending": [{"path": "/a", "size": 2048}]})
        line.clear()
        assert terminal.text == ("\r\x1b[Kuploading 1 file, 2.0 KiB: /a\r\x1b[K" if tty else "")


def test_progress_summary() -> None:
    assert progress.summary({}) == "unmounting"
    many = [
        {"path": "/\x1b]0;x", "size": 1 << 20},
        {"path": "/b", "size": 1 << 20},
        {"path": "/c", "size": None},
    ]
    assert progress.summary({"pending": many}) == "uploading 3 files, 2.0 MiB: /\\x1b]0;x"
    assert len(progress.summary({"pending": [{"path": "/" + "x" * 200, "size": 1}]})) == 78


def test_background_logs_go_to_a_file_or_syslog_or_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "log"
    assert logs.to_background(1, file)
    logging.getLogger("hvbridge.x").info("hello")
    logging.getLogger("httpx").info("GET")
    assert "hello" in file.read_text()
    assert "GET" not in file.read_text()
    monkeypatch.setattr(logs, "SYSLOG", tmp_path / "absent")
    assert not logs.to_background(0, None)
    with pytest.raises(UsageError, match="cannot write the log"):
        logs.to_background(0, tmp_path / "absent" / "log")


# --- the background -------------------------------------------------------

DETACH = """
import os, sys, time
from hvbridge.cli import main
from hvbridge.cli.background import run_detached
from hvbridge.errors import HvbridgeError
def work(ready):
{body}
sys.exit(run_detached(work))
"""


def detach(body: str) -> subprocess.CompletedProcess[str]:
    indented = "\n".join("    " + line for line in body.splitlines())
    return subprocess.run(
        [sys.executable, "-c", DETACH.format(body=indented)],
        capture_output=True,  # waits for its end, thus for everybody who holds stdout
        text=True,
        timeout=60,
        check=False,
    )


def test_the_caller_returns_when_the_child_is_ready(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    report = tmp_path / "report"
    body = (
        f"ready(); open({str(pipe)!r}).read()\n"
        f"open({str(report)!r}, 'w').write(f'{{os.getcwd()}} {{os.getsid(0) == os.getpid()}}'); return 0"
    )
    done = detach(body)  # returns, while the child still waits on the pipe
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not report.exists()
    pipe.write_text("go on")
    for _ in range(1000):
        if report.exists() and report.read_text():
            break
        threading.Event().wait(0.01)
    assert report.read_text() == "/ True"


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        ("print('no room', file=sys.stderr); return 3", 3, "no room"),
        ("sys.exit(2)", 2, ""),
        ("os.kill(os.getpid(), 9)", 1, "ended by signal 9 (SIGKILL)"),
    ],
)
def test_the_caller_fails_as_the_child_does(body: str, status: int, error: str) -> None:
    done = detach(body)
    assert done.returncode == status
    assert error in done.stderr
