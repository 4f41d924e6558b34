"""The guest itself, and QEMU's devices of a plain folder in it: what tests of hvbridge's devices stand on."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hvbridge.backends.vvfat import FatDisk
from tests.support.guest import CommandFailed, Guest, GuestError, Image, virtiofsd

pytestmark = pytest.mark.peers("qemu", "apt", "virtiofsd")

CONTENT = {"hello.txt": b"hello\n", "sub/random.bin": os.urandom(300_000), "Größe.txt": b"10 cm\n"}


def sha1(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def hashes(guest: Guest, folder: str) -> dict[str, str]:
    """Path below ``folder`` to SHA-1 of the content, by the guest's own reading."""
    lines = guest.run(f"cd {folder} && find . -type f -exec sha1sum '{{}}' +").splitlines()
    return {path.removeprefix("./"): digest for digest, path in (line.split("  ", 1) for line in lines)}


def usb_mtp(folder: Path) -> list[str]:
    return ["-device", f"usb-mtp,rootdir={folder},desc=client,readonly=off"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("folder")
    for name, content in CONTENT.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(content)
    return root


@pytest.fixture(scope="module")
def guest(guest_image: Image, folder: Path) -> Iterator[Guest]:
    """A guest with the folder as virtio disk, virtio-fs and MTP."""
    fat = {"node-name": "fat", **FatDisk(folder, label="CLIENT").blockdev}
    with virtiofsd(folder) as vhost_user:
        args = [
            *("-blockdev", json.dumps(fat), "-device", "virtio-blk-pci,drive=fat,serial=client"),
            *("-chardev", f"socket,id=fs,path={vhost_user}"),
            *("-device", "vhost-user-fs-pci,chardev=fs,tag=client"),
            *usb_mtp(folder),
        ]
        with Guest(guest_image, args) as running:
            yield running


def test_output_and_failures_come_back(guest: Guest) -> None:
    assert guest.run("echo 'ä b'; echo c >&2") == "ä b\nc\n"
    with pytest.raises(CommandFailed, match="No such file") as caught:
        guest.run("echo before; ls /missing; exit 7")
    assert caught.value.status == 7
    assert caught.value.output.startswith("before\n")
    assert len(guest.run("head -c 3000000 /dev/zero")) == 3_000_000


def test_a_command_that_hangs_holds_up_no_other(guest: Guest) -> None:
    hanging = guest.start("wait-for /tmp/released 60; echo released")
    with pytest.raises(GuestError, match=r"no answer within 0\.1 s"):
        guest.run("sleep 5", timeout=0.1)
    guest.run("touch /tmp/released")
    assert hanging.wait() == "released\n"


def test_fat_disk_is_read(guest: Guest) -> None:
    guest.run("wait-for /dev/vda1 && mkdir -p /mnt/fat && mount -t vfat -o ro /dev/vda1 /mnt/fat")
    assert hashes(guest, "/mnt/fat") == {name: sha1(content) for name, content in CONTENT.items()}
    assert guest.run("findfs LABEL=CLIENT") == "/dev/vda1\n"


def test_virtiofs_is_read_and_written(guest: Guest, folder: Path) -> None:
    guest.run("mkdir -p /mnt/fs && mount -t virtiofs client /mnt/fs")
    found = hashes(guest, "/mnt/fs")
    assert {name: found.get(name) for name in CONTENT} == {n: sha1(c) for n, c in CONTENT.items()}
    guest.run("echo 'from the guest' >/mnt/fs/sub/new")
    assert (folder / "sub/new").read_bytes() == b"from the guest\n"


# Of what was sent by MTP only the content counts here. QEMU answers with the number that
# the object will probably get, and gives it one when inotify tells of it: a program that asks
# for the object in between reports an error. (mtp-tools exit with 0 after most others.)


@pytest.mark.timeout(40)
def test_mtp_with_the_mtp_tools(guest: Guest, folder: Path) -> None:
    listed = guest.run("retry 9 sh -c 'mtp-files | grep -B1 random.bin'")
    (file_id,) = re.findall(r"File ID: (\d+)", listed)
    guest.run(f"mtp-getfile {file_id} /tmp/random.bin")
    assert guest.run("sha1sum </tmp/random.bin").split()[0] == sha1(CONTENT["sub/random.bin"])
    guest.run("echo sent >/tmp/sent.txt; mtp-sendfile /tmp/sent.txt / || true")
    assert (folder / "sent.txt").read_bytes() == b"sent\n"


@pytest.mark.timeout(40)
def test_mtp_as_a_folder(guest: Guest, folder: Path) -> None:
    guest.run("mkdir -p /mnt/mtp && retry 9 jmtpfs /mnt/mtp")
    assert hashes(guest, "/mnt/mtp/client")["sub/random.bin"] == sha1(CONTENT["sub/random.bin"])
    guest.run("echo written >/mnt/mtp/client/sub/by-mtp || true")
    assert (folder / "sub/by-mtp").read_bytes() == b"written\n"
    guest.run("umount /mnt/mtp")


def test_devices_come_and_go_while_it_runs(guest_image: Image, folder: Path) -> None:
    with Guest(guest_image) as guest:
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.settimeout(20)
            monitor.connect(str(guest.qmp))
            qmp = Monitor(monitor)
            qmp.execute("qmp_capabilities")
            qmp.execute("blockdev-add", {"node-name": "fat", **FatDisk(folder).blockdev})
            disk = {"driver": "virtio-blk-pci", "id": "disk", "drive": "fat", "bus": "port1"}
            qmp.execute("device_add", disk)
            guest.run("wait-for /dev/vda1 && mount -t vfat -o ro /dev/vda1 /mnt")
            assert hashes(guest, "/mnt")["hello.txt"] == sha1(CONTENT["hello.txt"])
            guest.run("umount /mnt")
            qmp.execute("device_del", {"id": "disk"})
            qmp.wait_event("DEVICE_DELETED", device="disk")
            guest.run("wait-gone /dev/vda")
        guest.poweroff()


def test_it_ends_with_its_block(guest_image: Image) -> None:
    with Guest(guest_image) as guest:
        pid = guest.pid
        assert Path(f"/proc/{pid}").exists()
        with pytest.raises(GuestError, match="the guest ended"):
            guest.run("poweroff -f")
    assert not Path(f"/proc/{pid}").exists()
    assert not guest.qmp.exists()


def test_what_qemu_refuses_is_told_at_once(guest_image: Image) -> None:
    began = time.monotonic()
    with (
        pytest.raises(GuestError, match="not a valid device model name"),
        Guest(guest_image, ["-device", "no-such-device"], accel="tcg"),
    ):
        pass
    assert time.monotonic() - began < 10


class Monitor:
    """As much of QMP as the test above needs."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._lines = connected.makefile("rb")
        self._events: list[dict[str, Any]] = []
        assert "QMP" in self._next()

    def execute(self, command: str, arguments: dict[str, Any] | None = None) -> None:
        request = {"execute": command, "arguments": arguments or {}}
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        while "event" in (answer := self._next()):
            self._events.append(answer)
        assert "return" in answer, answer

    def wait_event(self, name: str, **data: str) -> None:
        """Until an event with at least this data came; the socket's timeout ends the wait."""
        while True:
            for event in self._events:
                if event["event"] == name and data.items() <= event["data"].items():
                    return
            self._events.append(self._next())

    def _next(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._lines.readline())
        return message
