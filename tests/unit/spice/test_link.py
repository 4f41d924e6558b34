from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvbridge.spice.link import (
    MAX_LINK_SIZE,
    LinkErr,
    LinkHeader,
    LinkMess,
    LinkRefused,
    LinkReply,
    caps,
    has_cap,
    password_of,
    with_header,
)

capability_sets = st.sets(st.integers(0, 200), max_size=10).map(lambda bits: caps(*bits))


def test_what_a_client_sends() -> None:
    mess = LinkMess(0x11223344, 11, 2, common_caps=0b1011, channel_caps=caps(33))
    assert with_header(mess).hex(" ", -4) == (
        "52454451 02000000 02000000 1e000000"  # REDQ, version 2.2, 30 bytes
        " 44332211 0b020100 00000200 00001200 00000b00 00000000 00000200 0000"
    )


def test_what_a_server_answers() -> None:
    key = bytes(range(162))
    body = LinkReply(LinkErr.OK, key, common_caps=0b1011).pack()
    assert body == struct.pack("<I162sIIII", 0, key, 1, 0, 178, 0b1011)


def test_an_error_reply_has_no_caps() -> None:
    assert LinkReply(LinkErr.NEED_SECURED).pack() == struct.pack("<I162sIII", 5, b"", 0, 0, 178)


@given(
    connection_id=st.integers(0, 2**32 - 1),
    channel=st.tuples(st.integers(0, 255), st.integers(0, 255)),
    common=capability_sets,
    own=capability_sets,
)
def test_link_mess_round_trip(connection_id: int, channel: tuple[int, int], common: int, own: int) -> None:
    mess = LinkMess(connection_id, *channel, common, own)
    assert LinkMess.unpack(mess.pack()) == mess


@given(key=st.binary(min_size=162, max_size=162), common=capability_sets, own=capability_sets)
def test_link_reply_round_trip(key: bytes, common: int, own: int) -> None:
    reply = LinkReply(0, key, common, own)
    assert LinkReply.unpack(reply.pack()) == reply


def test_a_key_of_another_length_is_not_sent() -> None:
    with pytest.raises(ValueError, match="162"):
        LinkReply(0, b"short").pack()


def test_caps_are_bits() -> None:
    held = caps(0, 3, 70)
    assert [bit for bit in range(100) if has_cap(held, bit)] == [0, 3, 70]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (struct.pack("<4sIII", b"HTTP", 2, 2, 18), LinkErr.INVALID_MAGIC),
        (struct.pack("<4sIII", b"REDQ", 1, 2, 18), LinkErr.VERSION_MISMATCH),
        (struct.pack("<4sIII", b"REDQ", 3, 0, 18), LinkErr.VERSION_MISMATCH),
        (struct.pack("<4sIII", b"REDQ", 2, 2, MAX_LINK_SIZE + 1), LinkErr.INVALID_DATA),
        (struct.pack("<4sIII", b"REDQ", 2, 2, 2**32 - 1), LinkErr.INVALID_DATA),
    ],
)
def test_refused_headers(data: bytes, code: LinkErr) -> None:
    with pytest.raises(LinkRefused) as caught:
        LinkHeader.unpack(data)
    assert caught.value.code is code


def test_the_minor_version_does_not_matter() -> None:
    assert LinkHeader.unpack(struct.pack("<4sIII", b"REDQ", 2, 9, 18)).size == 18


@pytest.mark.parametrize(
    "body",
    [
        b"",
        bytes(17),
        struct.pack("<IBBIII", 0, 1, 0, 1, 0, 18),  # one word that is not there
        struct.pack("<IBBIII", 0, 1, 0, 2**32 - 1, 2**32 - 1, 18),  # would wrap around in 32 bits
        struct.pack("<IBBIII", 0, 1, 0, 0, 0, 17),  # caps within the fixed part
        struct.pack("<IBBIII", 0, 1, 0, 0, 0, 2**32 - 1),
        struct.pack("<IBBIII", 0, 1, 0, 1, 0, 20) + bytes(4),  # two bytes short
    ],
)
def test_refused_link_messages(body: bytes) -> None:
    with pytest.raises(LinkRefused) as caught:
        LinkMess.unpack(body)
    assert caught.value.code is LinkErr.INVALID_DATA


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_makes_sense(body: bytes) -> None:
    try:
        mess = LinkMess.unpack(body)
    except LinkRefused:
        return
    assert max(mess.common_caps, mess.channel_caps).bit_length() <= 8 * len(body)
    assert LinkMess.unpack(mess.pack()) == mess


@pytest.mark.parametrize(
    ("ticket", "password"),
    [(b"\0", b""), (b"", b""), (b"secret\0", b"secret"), (b"secret", b"secret"), (b"a\0b\0", b"a")],
)
def test_the_password_is_a_c_string(ticket: bytes, password: bytes) -> None:
    assert password_of(ticket) == password
