"""The guest, running: QEMU with what the devices need, and a line to run commands in it.

    with Guest(build(), ["-device", "usb-mtp,rootdir=/srv/client,readonly=on"]) as guest:
        print(guest.run("mtp-files", timeout=30))

Its machine is a q35 with shared memory (vhost-user devices need that), an xHCI
controller ``usb``, root ports ``port1`` to ``port4`` to plug PCI devices into, and
a QMP socket, :attr:`Guest.qmp`.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import os
import queue
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from .image import Image

QEMU = "qemu-system-x86_64"

BOOT_SECONDS = 60.0
"""Until the first command has run. 3 s by emulation on an idle machine."""

KVM_SECONDS = 8.0
"""The same with KVM that works, which takes about 1 s; nested KVM may accept all and do nothing."""

POWEROFF_SECONDS = 20.0

MEMORY_MIB = 512

ROOT_PORTS = 4

OUTPUT_BYTES = 64 << 20
"""Most output of one command: a guest cannot fill the memory of the one who asks."""


class GuestError(Exception):
    """The guest did not start, did not answer, or has gone."""


class CommandFailed(GuestError):
    """A command ended with another status than 0; ``output`` is what it printed, on both streams."""

    def __init__(self, script: str, status: int, output: str) -> None:
        super().__init__(f"exit status {status}: {script}\n{output}")
        self.status = status
        self.output = output


class Command:
    """A command that runs in the guest. Made by :meth:`Guest.start`."""

    def __init__(self, guest: Guest, script: str) -> None:
        self._guest = guest
        self._script = script
        self._answers: queue.SimpleQueue[tuple[int, bytes] | None] = queue.SimpleQueue()

    def wait(self, timeout: float = 30.0) -> str:
        """What it printed, once it has ended; call once.

        Raises :class:`CommandFailed` for a status other than 0, :class:`GuestError`
        after ``timeout`` seconds (the command goes on) or when QEMU ended.
        """
        try:
            answer = self._answers.get(timeout=timeout)
        except queue.Empty:
            raise self._unanswered(f"no answer within {timeout:g} s") from None
        if answer is None:
            raise self._unanswered("the guest ended")
        status, output = answer
        text = output.decode(errors="surrogateescape")
        if status != 0:
            raise CommandFailed(self._script, status, text)
        return text

    def _unanswered(self, why: str) -> GuestError:
        return GuestError(f"{why}: {self._script}\n{self._guest.last_words()}")

    def answered(self, status: int, output: bytes) -> None:
        """Called by the guest's reader."""
        self._answers.put((status, output))

    def abandoned(self) -> None:
        """Called when no answer can come any more."""
        self._answers.put(None)


class Guest:
    """A running guest, from ``with`` to the end of its block.

    ``args``: more arguments for QEMU, devices for instance. ``accel``: ``kvm`` or
    ``tcg``; by default KVM where it works. ``console``: where the kernel's messages
    go (by default a file that goes away with the guest; :meth:`last_words` reads
    it). The guest switches itself off when this process is gone.
    """

    def __init__(
        self,
        image: Image,
        args: Sequence[str] = (),
        accel: str | None = None,
        console: Path | None = None,
        boot_seconds: float = BOOT_SECONDS,
    ) -> None:
        self._image = image
        self._args = list(args)
        self._accel = accel
        self._console = console
        self._boot_seconds = boot_seconds
        self._tags = itertools.count(1)
        self._waiting: dict[str, Command] = {}
        self._lock = threading.Lock()
        self._ended = False
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Guest:
        self._accel = self._accel or working_accel(self._image)
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="hvguest-"))
            self._folder = Path(folder)
            self._launch()
            stack.callback(self._end)
            try:
                self.run(":", self._boot_seconds)
            except GuestError as exc:
                raise GuestError(f"no boot ({self._accel}): {exc}") from exc
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def qmp(self) -> Path:
        """QEMU's QMP socket. It takes one client at a time; the guest itself never is one."""
        return self._folder / "qmp"

    @property
    def console(self) -> Path:
        """The file that the kernel and QEMU write to."""
        return self._console or self._folder / "console"

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._process.pid

    @property
    def accel(self) -> str:
        """``kvm`` or ``tcg``; known once it runs."""
        assert self._accel is not None
        return self._accel

    def start(self, script: str) -> Command:
        """Run a line or more of shell (busybox's) in the guest, without waiting; several run side by side."""
        tag = str(next(self._tags))
        command = Command(self, script)
        with self._lock:
            if self._ended:
                command.abandoned()
                return command
            self._waiting[tag] = command
            encoded = base64.b64encode(script.encode(errors="surrogateescape"))
            with contextlib.suppress(OSError):  # the reader finds the same end, and says so
                self._line.sendall(tag.encode() + b" " + encoded + b"\n")
        return command

    def run(self, script: str, timeout: float = 30.0) -> str:
        """Run it and wait: see :meth:`start` and :meth:`Command.wait`."""
        return self.start(script).wait(timeout)

    def poweroff(self, timeout: float = POWEROFF_SECONDS) -> None:
        """Let the guest unmount and switch off; raises :class:`GuestError` if QEMU does not end in time."""
        self.start("umount -a -r; poweroff -f")
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise GuestError(f"still on, {timeout:g} s after poweroff\n{self.last_words()}") from None

    def last_words(self, size: int = 2000) -> str:
        """The end of the console, and of what QEMU said."""
        with contextlib.suppress(OSError):
            return self.console.read_bytes()[-size:].decode(errors="replace")
        return ""

    def close(self) -> None:
        """Kill QEMU if it still runs, and remove the guest's files. May be called twice."""
        self._stack.close()

    def _launch(self) -> None:
        self._line, guest_end = socket.socketpair()
        with guest_end, socket.socket(socket.AF_UNIX) as monitor:
            # Bound before QEMU starts, so that nobody has to wait for it to appear.
            monitor.bind(str(self.qmp))
            monitor.listen(1)
            passed = (guest_end.fileno(), monitor.fileno())
            argv = [*self._machine(*passed), *self._args]
            try:
                with self.console.open("ab") as log:
                    self._process = subprocess.Popen(
                        argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=passed
                    )
            except OSError as exc:
                self._line.close()
                raise GuestError(f"{QEMU} (package qemu-system-x86): {exc.strerror}") from exc
        self._reader = threading.Thread(target=self._read, name="guest", daemon=True)
        self._reader.start()

    def _end(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
        self._process.wait(POWEROFF_SECONDS)
        with contextlib.suppress(OSError):
            self._line.shutdown(socket.SHUT_RDWR)
        self._reader.join(POWEROFF_SECONDS)
        self._line.close()

    def _machine(self, line: int, monitor: int) -> list[str]:
        ram = f"memory-backend-memfd,id=ram,size={MEMORY_MIB}M,share=on"
        # Each character on the console costs an exit; all is in dmesg. A panic ends QEMU.
        kernel_line = "console=ttyS0 quiet loglevel=5 panic=-1"
        ports = [
            f"pcie-root-port,id=port{number},chassis={number},slot={number}"
            for number in range(1, ROOT_PORTS + 1)
        ]
        devices = [
            "qemu-xhci,id=usb",
            "virtio-rng-pci",
            "virtio-serial-pci",
            "virtserialport,chardev=agent,name=hvbridge.agent",
            *ports,
        ]
        return [
            QEMU,
            *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
            *("-machine", f"q35,accel={self.accel},memory-backend=ram"),
            *("-object", ram, "-m", f"{MEMORY_MIB}M", "-smp", "1"),
            *("-kernel", str(self._image.kernel), "-initrd", str(self._image.initrd)),
            *("-append", kernel_line),
            *("-chardev", f"file,id=console,path={self.console},append=on", "-serial", "chardev:console"),
            *("-chardev", f"socket,id=qmp,fd={monitor},server=on,wait=off"),
            *("-mon", "chardev=qmp,mode=control"),
            *("-chardev", f"socket,id=agent,fd={line}"),
            *itertools.chain.from_iterable(("-device", device) for device in devices),
        ]

    def _read(self) -> None:
        """The reader thread: each answer to the command that waits for it."""
        with self._line.makefile("rb") as line, contextlib.suppress(OSError, ValueError):
            for tag, status, output in _answers(line):
                with self._lock:
                    command = self._waiting.pop(tag, None)
                if command is not None:
                    command.answered(status, output)
        with self._lock:
            self._ended = True
            lost, self._waiting = list(self._waiting.values()), {}
        for command in lost:
            command.abandoned()


def _answers(line: BinaryIO) -> Iterator[tuple[str, int, bytes]]:
    """Tag, exit status and output of each answer; ``ValueError`` for what is none."""
    while header := line.readline(256):
        tag, status, length = header.decode("ascii").split()
        size = int(length)
        if not 0 <= size <= OUTPUT_BYTES:
            raise ValueError(f"output of {size} bytes")
        output = line.read(size)
        if len(output) < size:
            return
        yield tag, int(status), output


def working_accel(image: Image) -> str:
    """``kvm`` if a guest really boots with it here, else ``tcg``.

    Found out once after each start of the host, and noted beside the image:
    where KVM is nested, opening it says nothing.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    note = image.initrd.with_name("accel")
    with contextlib.suppress(OSError, ValueError):
        noted_boot, noted_accel = note.read_text().split()
        if noted_boot == boot:
            return noted_accel
    try:
        with Guest(image, accel="kvm", boot_seconds=KVM_SECONDS):
            accel = "kvm"
    except GuestError:
        accel = "tcg"
    note.write_text(f"{boot} {accel}\n")
    return accel
