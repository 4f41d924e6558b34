from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvbridge.errors import ProtocolError
from hvbridge.spice.messages import (
    MAX_CONTROL,
    MAX_MESSAGE,
    WEBDAV_PORT,
    AckSync,
    ChannelsList,
    Disconnecting,
    MainInit,
    MessageReader,
    Ping,
    PortEvent,
    PortInit,
    SetAck,
    pack_port_event,
    unpack_port_event,
)

BODIES: list[tuple[Any, bytes]] = [
    (SetAck(1, 64), struct.pack("<II", 1, 64)),
    (AckSync(7), struct.pack("<I", 7)),
    (Ping(3, 2**63), struct.pack("<IQ", 3, 2**63)),
    (Disconnecting(5, 0), struct.pack("<QI", 5, 0)),
    (MainInit(4242), struct.pack("<8I", 4242, 0, 1, 1, 0, 0, 0, 0)),
    (ChannelsList(((11, 0), (1, 0))), struct.pack("<I4B", 2, 11, 0, 1, 0)),
    (PortInit(WEBDAV_PORT, True), struct.pack("<IIB", 25, 9, 1) + b"org.spice-space.webdav.0\0"),
]


@pytest.mark.parametrize(("message", "wire"), BODIES)
def test_bodies(message: Any, wire: bytes) -> None:
    assert message.pack() == wire
    assert type(message).unpack(wire) == message
    assert type(message).unpack(memoryview(wire)) == message


@pytest.mark.parametrize(("message", "wire"), BODIES)
def test_short_bodies_are_an_error(message: Any, wire: bytes) -> None:
    for size in range(len(wire)):
        with pytest.raises(ProtocolError):
            type(message).unpack(wire[:size])


@pytest.mark.parametrize("message", [body for body, _ in BODIES])
@given(data=st.binary(max_size=60))
def test_garbage_bodies(message: Any, data: bytes) -> None:
    try:
        type(message).unpack(data)
    except ProtocolError:
        return
    assert len(data) >= 4


@pytest.mark.parametrize(
    "body",
    [
        struct.pack("<IIB", 2**32 - 1, 9, 1),
        struct.pack("<IIB", 1, 2**32 - 1, 1) + b"\0",
        struct.pack("<IIB", 1, 0, 1) + b"\0",
    ],
)
def test_a_port_name_lies_within_its_message(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="PORT_INIT"):
        PortInit.unpack(body)


def test_a_list_of_channels_is_not_believed() -> None:
    with pytest.raises(ProtocolError, match="CHANNELS_LIST"):
        ChannelsList.unpack(struct.pack("<I", 2**32 - 1) + bytes(100))


@pytest.mark.parametrize("event", PortEvent)
def test_port_events(event: PortEvent) -> None:
    assert unpack_port_event(pack_port_event(event)) is event


@pytest.mark.parametrize("body", [b"", b"\x03", b"\xff"])
def test_port_events_that_there_are_not(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="PORT_EVENT"):
        unpack_port_event(body)


# --- the splitter ---------------------------------------------------------

STREAMED, WHOLE, SKIPPED = 101, 3, 999


def mini(kind: int, body: bytes) -> bytes:
    return struct.pack("<HI", kind, len(body)) + body


def full(kind: int, body: bytes) -> bytes:
    return struct.pack("<QHII", 1, kind, len(body), 0) + body


def reader(is_mini: bool = True) -> MessageReader:
    return MessageReader(mini=is_mini, streamed={STREAMED}, whole={WHOLE})


def pieces(taken: MessageReader, data: bytes) -> list[tuple[int, bytes]]:
    return [(kind, bytes(view)) for kind, view in taken.receive(data)]


@given(
    messages=st.lists(
        st.tuples(st.sampled_from([STREAMED, WHOLE, SKIPPED]), st.binary(max_size=60)), max_size=12
    ),
    sizes=st.lists(st.integers(0, 40), max_size=60),
    packer=st.sampled_from([mini, full]),
)
def test_any_chunking(
    messages: list[tuple[int, bytes]], sizes: list[int], packer: Callable[[int, bytes], bytes]
) -> None:
    wire = b"".join(packer(*message) for message in messages)
    taken = reader(packer is mini)
    streamed, whole = b"", []
    at = 0
    for size in [*sizes, len(wire)]:
        for kind, body in pieces(taken, wire[at : at + size]):
            if kind == STREAMED:
                streamed += body
            else:
                whole.append((kind, body))
        at += size
        assert taken.held <= 18 + 60
    assert streamed == b"".join(body for kind, body in messages if kind == STREAMED)
    assert whole == [message for message in messages if message[0] == WHOLE]
    assert taken.held == 0


def test_data_do_not_wait_for_their_message() -> None:
    taken = reader()
    wire = mini(STREAMED, b"x" * 100_000)
    assert pieces(taken, wire[:50_000]) == [(STREAMED, b"x" * 49_994)]
    assert taken.held == 0
    assert pieces(taken, wire[50_000:]) == [(STREAMED, b"x" * 50_006)]


def test_pieces_are_views_of_what_was_given() -> None:
    buffer = bytearray(mini(STREAMED, b"before"))
    ((_, view),) = reader().receive(buffer)
    buffer[6:] = b"after!"
    assert bytes(view) == b"after!"


@pytest.mark.parametrize("is_mini", [True, False])
@pytest.mark.parametrize(
    ("kind", "size"),
    [(WHOLE, MAX_CONTROL + 1), (STREAMED, MAX_MESSAGE + 1), (SKIPPED, MAX_MESSAGE + 1), (WHOLE, 2**32 - 1)],
)
def test_sizes_over_the_limits(is_mini: bool, kind: int, size: int) -> None:
    header = struct.pack("<HI", kind, size) if is_mini else struct.pack("<QHII", 1, kind, size, 0)
    with pytest.raises(ProtocolError, match=f"type {kind} and {size} bytes"):
        reader(is_mini).receive(header)


def test_sizes_at_the_limits() -> None:
    taken = reader()
    assert pieces(taken, mini(WHOLE, bytes(MAX_CONTROL))) == [(WHOLE, bytes(MAX_CONTROL))]
    assert taken.receive(struct.pack("<HI", SKIPPED, MAX_MESSAGE)) == []
    for _ in range(MAX_MESSAGE >> 16):
        assert taken.receive(bytes(1 << 16)) == []
        assert taken.held == 0
    assert pieces(taken, mini(WHOLE, b"next")) == [(WHOLE, b"next")]


def test_sub_messages_are_refused() -> None:
    with pytest.raises(ProtocolError, match="sub-messages"):
        reader(False).receive(struct.pack("<QHII", 1, WHOLE, 4, 18) + bytes(4))


@given(chunks=st.lists(st.binary(max_size=50), max_size=30), is_mini=st.booleans())
def test_garbage_does_not_pile_up(chunks: list[bytes], is_mini: bool) -> None:
    taken = reader(is_mini)
    try:
        for chunk in chunks:
            given_out = sum(len(view) for _, view in taken.receive(chunk))
            assert given_out <= MAX_CONTROL + len(chunk)
            assert taken.held < 18 + MAX_CONTROL
    except ProtocolError as exc:
        assert "message" in str(exc)
