"""``hvbridge demo``: the whole way on one machine, told with the commands that an operator types.

A client's folder is shared, mounted, read and written through the mount, and
made a FAT disk by QEMU, which mtools read back. Every command that is shown is
the one that runs; every byte is compared.
"""

from __future__ import annotations

import contextlib
import filecmp
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

from hvbridge import doctor, mounts
from hvbridge.backends.vvfat import FatDisk, partition_of
from hvbridge.doctor import Check, State
from hvbridge.errors import HvbridgeError
from hvbridge.host import Host

STEP_SECONDS = 30.0
"""One command, or one condition; each takes well under 1 s."""

HVBRIDGE = [sys.executable, "-m", "hvbridge"]

FROM_HOST = "Hello from the host.\n"


class DemoFailed(HvbridgeError):
    """A step did not do what it must."""


def run_demo(*, keep: bool = False, say: Callable[[str], None] = print) -> None:
    """Run it, telling through ``say``. Raises :class:`HvbridgeError` at the first thing that is wrong."""
    require(doctor.examine_for(Host(), "mount", "demo"))
    with contextlib.ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="hvbridge-demo-")).resolve()
        if keep:
            stack.callback(say, f"Everything is still in {folder}.")
        else:
            stack.callback(remove_tree, folder)
        Demo(folder, say, stack).run()


def require(checks: list[Check]) -> None:
    """Raises :class:`DemoFailed` naming each missing piece and its mend."""
    missing = [check for check in checks if check.state is State.MISSING]
    if missing:
        pieces = "; ".join(f"{check.name} ({check.mend})" for check in missing)
        raise DemoFailed(f"the demo lacks {pieces}. See 'hvbridge doctor'")


def remove_tree(folder: Path) -> None:
    """Remove the demo's folder, unless something is still mounted in it."""
    if not any(mount.mountpoint.is_relative_to(folder) for mount in mounts.mounts()):
        shutil.rmtree(folder, ignore_errors=True)


class Demo:
    """The steps, in their order; ``stack`` takes down in reverse what they set up."""

    def __init__(self, folder: Path, say: Callable[[str], None], stack: contextlib.ExitStack) -> None:
        self.say = say
        self._stack = stack
        self.folder = folder
        self.shared = folder / "client" / "Public"
        self.mountpoint = folder / "mnt"
        self.socket = folder / "channel.sock"
        self.image = folder / "disk.img"
        self.environment = os.environ | {
            "HVBRIDGE_RUNTIME_DIR": str(folder / "run"),
            "HVBRIDGE_STATE_DIR": str(folder / "state"),
        }

    def run(self) -> None:
        """All steps."""
        self.make_folder()
        self.share()
        bridge = self.mount()
        self.read()
        self.write()
        self.make_disk()
        self.read_disk()
        self.unmount(bridge)
        self.say("\nEvery byte arrived. This was the demo.")

    def make_folder(self) -> None:
        """What the client's user has."""
        self.say("A user shares a folder:\n")
        (self.shared / "Holiday photos").mkdir(parents=True)
        self.mountpoint.mkdir()
        (self.shared / "Read me.txt").write_text("This file is on the client's disk.\n")
        (self.shared / "Holiday photos" / "sunset.raw").write_bytes(pseudorandom(3_000_000))
        (self.shared / "empty.txt").touch()
        self.show("ls", "-lR", str(self.shared))

    def share(self) -> None:
        """The client's side, without SPICE."""
        self.say("\nThe client's side of the channel (SPICE's client does this for a real one):\n")
        child = self.spawn("share", str(self.shared), f"unix-listen://{quote(str(self.socket))}")
        self.wait_for(self.socket.exists, "the channel's socket", child)

    def mount(self) -> subprocess.Popen[bytes]:
        """The host's side; returns the process that serves the mount."""
        self.say("\nThe host takes the channel and mounts the folder:\n")
        # Registered before the child, so it runs after the child is ended.
        self._stack.callback(self.take_down)
        child = self.spawn("mount", f"unix://{quote(str(self.socket))}", str(self.mountpoint), "--foreground")
        self.wait_for(lambda: mounts.mount_at(self.mountpoint) is not None, "the mount", child)
        wanted = self.shared / "Read me.txt"
        mounted = self.mountpoint / wanted.name
        self.wait_for(lambda: self.quietly("test", "-f", str(mounted)), "the client's files", child)
        return child

    def read(self) -> None:
        """A listing and a file, through the mount."""
        self.say("")
        listing = self.show("ls", "-lR", str(self.mountpoint))
        for name in ("Holiday photos", "sunset.raw", "Read me.txt", "empty.txt"):
            expect(name.encode() in listing, f"{name!r} is not in the mount's listing")
        text = self.show("cat", str(self.mountpoint / "Read me.txt"))
        expect(text == (self.shared / "Read me.txt").read_bytes(), "the text differs from the client's")
        photo = Path("Holiday photos", "sunset.raw")
        self.show("cmp", str(self.mountpoint / photo), str(self.shared / photo))
        self.say("(the same)")

    def write(self) -> None:
        """A file made in the mount is on the client's disk."""
        self.say("\nWhat is written in the mount, the client has:\n")
        inside, outside = self.mountpoint / "from-host.txt", self.shared / "from-host.txt"
        self.show_shell(
            f"printf {shlex.quote(FROM_HOST.encode('unicode_escape').decode())} > {shlex.quote(str(inside))}"
        )
        self.show("sync", str(inside))
        text = self.show("cat", str(outside))
        expect(text == FROM_HOST.encode(), "the client has other content than was written")

    def make_disk(self) -> None:
        """QEMU makes a FAT disk of the mount."""
        self.say(
            "\nQEMU makes a FAT disk of the mount, as it would for a guest without network or drivers:\n"
        )
        self.show(*FatDisk(self.mountpoint).convert_command(self.image))

    def read_disk(self) -> None:
        """mtools read the disk back."""
        partition, copy = partition_of(self.image), self.folder / "from-disk"
        self.show("mdir", "-i", partition, "::/")
        text = self.show("mtype", "-i", partition, "::/Read me.txt")
        expect(text == (self.shared / "Read me.txt").read_bytes(), "the disk's text differs")
        copy.mkdir()
        self.show("mcopy", "-s", "-n", "-i", partition, "::/", str(copy))
        differing = differences(self.shared, copy)
        expect(not differing, f"the disk differs from the client's folder in {', '.join(differing)}")
        self.say(f"({len(tree(copy))} files and folders, each as the client has it)")

    def unmount(self, bridge: subprocess.Popen[bytes]) -> None:
        """The end: uploads are finished, the mount goes, its process ends by itself."""
        self.say("\nThe end:\n")
        self.show_line(f"hvbridge umount {self.mountpoint}")
        self.check_run([*HVBRIDGE, "umount", str(self.mountpoint)])
        try:
            status = bridge.wait(STEP_SECONDS)
        except subprocess.TimeoutExpired:
            raise DemoFailed("the bridge did not end after umount") from None
        expect(status == 0, f"the bridge ended with status {status}{self.log_of('mount')}")
        expect(mounts.mount_at(self.mountpoint) is None, "the mount is still there")

    # --- running and showing ------------------------------------------------

    def show_line(self, line: str) -> None:
        """One command, as typed."""
        self.say(f"$ {line}")

    def show(self, *argv: str) -> bytes:
        """Show and run a command; its output, which is shown, too."""
        self.show_line(shlex.join(argv))
        output = self.check_run(list(argv))
        if output:
            self.say(output.decode(errors="replace").rstrip("\n"))
        return output

    def show_shell(self, line: str) -> None:
        """The same for a line that needs a shell."""
        self.show_line(line)
        self.check_run(["sh", "-c", line])

    def check_run(self, argv: list[str]) -> bytes:
        """Run to the end; stdout. Raises :class:`DemoFailed` on any other status than 0."""
        try:
            done = subprocess.run(
                argv, capture_output=True, timeout=STEP_SECONDS, check=False, env=self.environment
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise DemoFailed(f"{shlex.join(argv)}: {exc}{self.log_of('mount')}") from exc
        if done.returncode != 0:
            said = (done.stderr or done.stdout).decode(errors="replace").strip()
            raise DemoFailed(f"{shlex.join(argv)}: status {done.returncode}: {said}{self.log_of('mount')}")
        return done.stdout

    def quietly(self, *argv: str) -> bool:
        """Run a test; whether it succeeded."""
        done = subprocess.run(argv, capture_output=True, timeout=STEP_SECONDS, check=False)
        return done.returncode == 0

    def spawn(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Show and start one of our commands; it is ended with the demo."""
        self.show_line(shlex.join(["hvbridge", *arguments]) + " &")
        return self._stack.enter_context(self.child(*arguments))

    @contextlib.contextmanager
    def child(self, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """A command of ours in the background, its stderr in a log."""
        with (self.folder / f"{arguments[0]}.log").open("wb") as log:
            child = subprocess.Popen(
                [*HVBRIDGE, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
                start_new_session=True,  # a Ctrl-C is ours; they end in our order
            )
        try:
            yield child
        finally:
            end(child)

    def log_of(self, command: str) -> str:
        """The end of a command's log, to be appended to an error."""
        with contextlib.suppress(OSError):
            text = (self.folder / f"{command}.log").read_text(errors="replace")
            if text.strip():
                return f" (hvbridge {command} said: {' / '.join(text.strip().splitlines()[-3:])})"
        return ""

    def wait_for(self, condition: Callable[[], bool], what: str, child: subprocess.Popen[bytes]) -> None:
        """Wait until ``condition``, or until ``child`` ended or the time is over, which fail."""
        ends_at = time.monotonic() + STEP_SECONDS
        while not condition():
            command = child.args[len(HVBRIDGE)] if isinstance(child.args, list) else "?"
            if child.poll() is not None:
                text = f"hvbridge {command} ended with status {child.returncode}"
                raise DemoFailed(f"{text} before {what} was there{self.log_of(str(command))}")
            if time.monotonic() > ends_at:
                raise DemoFailed(f"{what} did not come in {STEP_SECONDS:g} s{self.log_of(str(command))}")
            time.sleep(0.02)

    def take_down(self) -> None:
        """After a failure: leave no mount behind."""
        if mounts.mount_at(self.mountpoint) is not None:
            with contextlib.suppress(HvbridgeError):
                mounts.unmount(self.mountpoint, lazy=True)


def end(child: subprocess.Popen[bytes]) -> None:
    """End a child that is still there, gently first."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def expect(condition: bool, otherwise: str) -> None:
    """Raises :class:`DemoFailed` with ``otherwise`` unless ``condition``."""
    if not condition:
        raise DemoFailed(otherwise)


def pseudorandom(size: int) -> bytes:
    """``size`` bytes that do not compress, the same every time."""
    return hashlib.shake_128(b"hvbridge").digest(size)


def tree(folder: Path) -> dict[str, Path]:
    """Everything below ``folder``, by relative path."""
    return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*"))}


def differences(left: Path, right: Path) -> list[str]:
    """Relative paths that are on one side only, or differ in kind or in any byte."""
    ours, theirs = tree(left), tree(right)
    names = ours.keys() | theirs.keys()
    return sorted(name for name in names if not _same(ours.get(name), theirs.get(name)))


def _same(left: Path | None, right: Path | None) -> bool:
    if left is None or right is None or left.is_dir() != right.is_dir():
        return False
    return left.is_dir() or filecmp.cmp(left, right, shallow=False)
