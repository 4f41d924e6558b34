"""The doctor, on hosts that lack one thing or another."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hvbridge import doctor
from hvbridge.doctor import Check, State
from hvbridge.domain import connection
from hvbridge.domain.connection import LibvirtError, Versions
from hvbridge.host import Host

BOOKWORM = {"ID": "debian", "VERSION_ID": "12"}
TRIXIE = {"ID": "debian", "VERSION_ID": "13"}
FEDORA = {"ID": "fedora", "VERSION_ID": "40"}


@dataclass
class FakeHost(Host):
    """A host made of what it has."""

    user: int = 0
    os: dict[str, str] = field(default_factory=lambda: dict(BOOKWORM))
    programs: set[str] = field(default_factory=set)
    files: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    libraries: set[str] = field(default_factory=set)
    outputs: dict[str, str] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)

    @property
    def uid(self) -> int:
        return self.user

    @property
    def release(self) -> dict[str, str]:
        return self.os

    def which(self, name: str) -> str | None:
        return f"/usr/bin/{name}" if name in self.programs else None

    def first(self, patterns: Iterable[str]) -> str | None:
        for pattern in patterns:
            regex = re.escape(pattern).replace(r"\*", "[^/]*")
            for name in self.files:
                if re.fullmatch(regex, name):
                    return name
        return None

    def read(self, path: str) -> str | None:
        return self.files.get(path)

    def open_error(self, path: str) -> str | None:
        return self.errors.get(path)

    def library(self, name: str, override: str | None = None) -> str | None:
        return f"lib{name}.so.2" if name in self.libraries else None

    def output(self, *argv: str) -> str | None:
        return self.outputs.get(argv[0].rsplit("/", 1)[-1])

    def package(self, name: str) -> str | None:
        return self.packages.get(name)

    def requirements(self, name: str) -> list[str]:
        return ["click>=8.1", "WsgiDAV>=4.3", "libvirt-python (>=9.0)"] if self.packages else []


def found(check: Check) -> tuple[State, str, str | None]:
    return check.state, check.found, check.mend


# --- what mount needs -----------------------------------------------------


def test_fuse_device() -> None:
    assert doctor.fuse_device(FakeHost()).state is State.OK
    absent = doctor.fuse_device(FakeHost(errors={"/dev/fuse": "No such file or directory"}))
    assert absent.state is State.MISSING
    assert absent.mend is not None
    assert absent.mend.startswith("modprobe fuse")
    denied = doctor.fuse_device(FakeHost(errors={"/dev/fuse": "Permission denied"}))
    assert denied.mend is not None
    assert denied.mend.startswith("chmod 0666 /dev/fuse")


@pytest.mark.parametrize(
    ("release", "mend"),
    [
        (BOOKWORM, "apt-get install libfuse2"),
        (TRIXIE, "apt-get install libfuse2t64"),
        ({"ID": "debian"}, "apt-get install libfuse2t64"),  # testing and unstable
        ({"ID": "ubuntu", "ID_LIKE": "debian", "VERSION_ID": "22.04"}, "apt-get install libfuse2"),
        ({"ID": "ubuntu", "ID_LIKE": "debian", "VERSION_ID": "24.04"}, "apt-get install libfuse2t64"),
        ({"ID": "linuxmint", "ID_LIKE": "ubuntu debian", "VERSION_ID": "21"}, "apt-get install libfuse2"),
        (FEDORA, "install what Debian calls libfuse2"),
        ({}, "install what Debian calls libfuse2"),
    ],
)
def test_libfuse2_has_another_name_since_debian_13(release: dict[str, str], mend: str) -> None:
    assert found(doctor.libfuse2(FakeHost(os=release))) == (
        State.MISSING,
        "no libfuse.so.2 that can be loaded",
        mend,
    )
    assert doctor.libfuse2(FakeHost(os=release, libraries={"fuse"})).state is State.OK


def test_fusermount() -> None:
    assert doctor.fusermount(FakeHost(programs={"fusermount"})).state is State.OK
    none = doctor.fusermount(FakeHost())
    assert found(none) == (State.MISSING, "no fusermount in PATH", "apt-get install fuse3")
    third = doctor.fusermount(FakeHost(programs={"fusermount3"}))
    assert third.mend == "ln -s /usr/bin/fusermount3 /usr/local/bin/fusermount"


def test_allow_other() -> None:
    commented = {"/etc/fuse.conf": "# user_allow_other\n#user_allow_other\n"}
    given = {"/etc/fuse.conf": "#mount_max = 1000\n user_allow_other \n"}
    assert doctor.user_allow_other(FakeHost(user=0, files=commented)).state is State.OK
    assert doctor.user_allow_other(FakeHost(user=1000, files=given)).state is State.OK
    for files in (commented, {}):
        check = doctor.user_allow_other(FakeHost(user=1000, files=files))
        assert check.state is State.WARN
        assert check.mend == "echo user_allow_other | sudo tee -a /etc/fuse.conf"


def test_python_packages() -> None:
    some = {"click": "8.1", "WsgiDAV": "4.3"}
    assert found(doctor.python_packages(FakeHost(packages=some))) == (
        State.MISSING,
        "without libvirt-python",
        "pip install libvirt-python",
    )
    every = some | {"libvirt-python": "9.0"}
    assert doctor.python_packages(FakeHost(packages=every)).state is State.OK
    assert doctor.python_packages(FakeHost()).found == "hvbridge is not installed"


# --- what the demo and guests need ----------------------------------------


@pytest.mark.parametrize(
    ("check", "program", "mend"),
    [
        (doctor.qemu_img, "qemu-img", "apt-get install qemu-utils"),
        (doctor.mtools, "mdir", "apt-get install mtools"),
        (doctor.qemu, "qemu-system-x86_64", "apt-get install qemu-system-x86"),
    ],
)
def test_tools(check: Callable[[Host], Check], program: str, mend: str) -> None:
    assert check(FakeHost()).mend == mend
    there = check(FakeHost(programs={program}, outputs={program: "tool 1.2\nCopyright\n"}))
    assert found(there) == (State.OK, f"/usr/bin/{program}: tool 1.2", None)
    broken = check(FakeHost(programs={program}))
    assert broken.found == f"/usr/bin/{program}"


@pytest.mark.parametrize("where", ["/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"])
def test_virtiofsd_is_in_one_of_two_places(where: str) -> None:
    assert found(doctor.virtiofsd(FakeHost(files={where: ""}))) == (State.OK, where, None)


@pytest.mark.parametrize(
    ("release", "virtiofsd", "spice"),
    [(BOOKWORM, "qemu-system-common", "qemu-system-gui"), (TRIXIE, "virtiofsd", "qemu-system-modules-spice")],
)
def test_packages_of_a_release(release: dict[str, str], virtiofsd: str, spice: str) -> None:
    host = FakeHost(os=release)
    assert doctor.virtiofsd(host).mend == f"apt-get install {virtiofsd}"
    assert doctor.spice(host).mend == f"apt-get install {spice}"


def test_spice_is_a_module_or_built_in() -> None:
    module = "/usr/lib/x86_64-linux-gnu/qemu/chardev-spice.so"
    assert doctor.spice(FakeHost(files={module: ""})).found == module
    built_in = FakeHost(outputs={"qemu-system-x86_64": "Available:\n  spiceport\n"})
    assert doctor.spice(built_in).found == "built in"


def test_spice_client() -> None:
    typelib = "/usr/lib/x86_64-linux-gnu/girepository-1.0/SpiceClientGLib-2.0.typelib"
    assert doctor.spice_client(FakeHost(files={typelib: ""})).state is State.OK
    assert doctor.spice_client(FakeHost()).state is State.MISSING


def test_libvirt() -> None:
    there = doctor.libvirt(FakeHost(), ask=lambda: Versions("12.8.0", "9.0.0", "QEMU 7.2.22"))
    assert found(there) == (State.OK, "libvirtd 9.0.0, QEMU 7.2.22, library 12.8.0", None)

    def refuse() -> Versions:
        raise LibvirtError("qemu:///system: Failed to connect")

    absent = doctor.libvirt(FakeHost(), ask=refuse)
    assert found(absent) == (
        State.MISSING,
        "qemu:///system: Failed to connect",
        "apt-get install libvirt-daemon-system",
    )
    stopped = doctor.libvirt(FakeHost(programs={"libvirtd"}), ask=refuse)
    assert stopped.mend == "systemctl start libvirtd"


def test_libvirt_errors_are_one_line() -> None:
    """libvirt-python itself, on a daemon that is not there."""
    with pytest.raises(LibvirtError) as caught:
        connection.versions("qemu+unix:///system?socket=/nonexistent/socket")
    assert "\n" not in str(caught.value)
    assert "/nonexistent/socket" in str(caught.value)


def test_libvirt_answers_with_its_versions() -> None:
    """libvirt's own driver for tests needs no daemon."""
    answer = connection.versions("test:///default")
    assert re.fullmatch(r"\d+\.\d+\.\d+", answer.library)
    assert answer.daemon == answer.library
    assert answer.hypervisor.startswith("TEST ")


@pytest.mark.parametrize(
    ("number", "text"), [(9_000_000, "9.0.0"), (12_008_001, "12.8.1"), (7002022, "7.2.22")]
)
def test_version_numbers(number: int, text: str) -> None:
    assert connection.dotted(number) == text


# --- the report -----------------------------------------------------------

CHECKS = [
    Check("one", "mount", State.OK, "/one"),
    Check("two", "guests", State.MISSING, "no two", "apt-get install two"),
    Check("three", "mount", State.WARN, "half of three", "mend three"),
]


def test_only_what_a_purpose_needs_counts() -> None:
    assert doctor.fit_for(CHECKS, "mount")
    assert not doctor.fit_for(CHECKS, "mount", "guests")


def test_report() -> None:
    lines = doctor.report(CHECKS).splitlines()
    assert [line.split()[:3] for line in lines if "→" not in line] == [
        ["ok", "one", "mount"],
        ["missing", "two", "guests"],
        ["warn", "three", "mount"],
    ]
    assert [line.strip() for line in lines if "→" in line] == ["→ apt-get install two", "→ mend three"]


def test_every_check_names_a_purpose_and_a_mend_on_a_bare_host() -> None:
    bare = FakeHost(user=1000, errors={"/dev/fuse": "No such file or directory"})
    for check in doctor.examine(bare):
        assert check.needed_for in {"mount", "demo", "guests", "tests"}
        if check.name != "libvirt":  # asks the real one
            assert check.state is not State.OK
            assert check.mend
    wanted = {check.name for check in doctor.examine_for(bare, "mount", "demo")}
    assert {"fuse device", "qemu-img"} <= wanted
    assert "virtiofsd" not in wanted


# --- the real host --------------------------------------------------------


def test_the_real_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host()
    assert host.which("sh")
    assert host.first(["/nonexistent/*", "/proc/self/sta?us"]) == "/proc/self/status"
    assert host.read(str(tmp_path)) is None
    assert host.open_error("/dev/null") is None
    assert host.open_error(str(tmp_path / "absent")) == "No such file or directory"
    assert host.library("c")
    assert host.library("no-such-library") is None
    monkeypatch.setenv("HVBRIDGE_TEST_LIBRARY", str(tmp_path / "absent.so"))
    assert host.library("c", override="HVBRIDGE_TEST_LIBRARY") is None
    assert host.output("echo", "hello") == "hello\n"
    assert host.output("false") is None
    assert host.output("no-such-command") is None
    assert host.package("pytest")
    assert host.package("no-such-package") is None
    assert any(line.startswith("click") for line in host.requirements("hvbridge"))
    assert not any("pytest" in line for line in host.requirements("hvbridge"))
