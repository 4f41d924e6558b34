from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from hypothesis import given
from hypothesis import strategies as st

from hvbridge.errors import LocalProtocolError, ProtocolError
from hvbridge.spice.endpoint import (
    ACK_WINDOW,
    MAX_EARLY,
    MAX_PAYLOAD,
    NEXT,
    Acknowledged,
    Authenticated,
    AuthenticationFailed,
    Ended,
    Endpoint,
    LinkRequested,
    Ponged,
    PortData,
    State,
)
from hvbridge.spice.link import LinkErr, LinkMess, LinkRefused
from tests.support import spice_peer as peer
from tests.support.spice_peer import ALL_CAPS, MAIN, WEBDAV, ClientEnd

KEY = rsa.generate_private_key(public_exponent=65537, key_size=1024)
PUBLIC = KEY.public_key().public_bytes(
    serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
)
SESSION = 0xC0FFEE


def decrypt(ticket: bytes) -> bytes | None:
    try:
        return KEY.decrypt(ticket, padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None))
    except ValueError:
        return None


class Dialogue:
    """An endpoint, its client, and an owner that lets everybody in."""

    def __init__(self, client: ClientEnd, password: bytes | None = None, chunk: int = 1 << 20) -> None:
        self.client = client
        self.server = Endpoint(password)
        self.chunk = chunk
        self.events: list[object] = []
        """The server's; data as bytes."""
        self.states = [self.server.state]

    def run(self) -> None:
        """Exchange bytes until neither has more to say."""
        while self.client.out or (data := b"".join(self.server.data_to_send())):
            if self.client.out:
                self.to_server(bytes(self.client.out[: self.chunk]))
                del self.client.out[: self.chunk]
            else:
                for at in range(0, len(data), self.chunk):
                    self.client.receive(data[at : at + self.chunk])

    def to_server(self, data: bytes) -> None:
        events = self.server.receive(data)
        for event in events:
            self.note(event)
            if isinstance(event, LinkRequested):
                events += self.server.offer(PUBLIC, decrypt)
            elif isinstance(event, Authenticated):
                events += self.server.accept(SESSION)
        self.note(None)

    def note(self, event: object) -> None:
        if self.states[-1] is not self.server.state:
            self.states.append(self.server.state)
        if event is not None:
            self.events.append(bytes(event.data) if isinstance(event, PortData) else event)


def linked(
    channel: tuple[int, int] = WEBDAV, common: int = ALL_CAPS, acks: bool = True, pongs: bool = True
) -> Dialogue:
    connection_id = 0 if channel == MAIN else SESSION
    dialogue = Dialogue(ClientEnd(channel, connection_id, common=common, acks=acks, pongs=pongs))
    dialogue.run()
    assert dialogue.client.linked
    return dialogue


@contextlib.contextmanager
def broken(dialogue: Dialogue, match: str) -> Iterator[None]:
    """The client breaks the protocol; afterwards the endpoint takes notice of nothing."""
    with pytest.raises(ProtocolError, match=match):
        yield
    assert dialogue.server.closed
    assert dialogue.server.receive(b"anything") == []


all_chunks = pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
all_headers = pytest.mark.parametrize("common", [ALL_CAPS, ALL_CAPS & ~peer.MINI_HEADER])


class TestLink:
    @all_chunks
    @pytest.mark.parametrize("common", [ALL_CAPS, peer.AUTH_SPICE, peer.MINI_HEADER, 0])
    def test_main(self, common: int, chunk: int) -> None:
        dialogue = Dialogue(ClientEnd(MAIN, common=common), chunk=chunk)
        dialogue.run()
        assert dialogue.client.error == dialogue.client.result == 0
        assert dialogue.client.session_id == SESSION
        assert dialogue.server.state is State.MAIN

    @all_chunks
    def test_webdav(self, chunk: int) -> None:
        dialogue = Dialogue(ClientEnd(WEBDAV, SESSION), chunk=chunk)
        dialogue.run()
        assert dialogue.client.messages == [
            (peer.SET_ACK, struct.pack("<II", 1, ACK_WINDOW)),
            (peer.PORT_INIT, struct.pack("<IIB", 25, 9, 1) + b"org.spice-space.webdav.0\0"),
        ]
        assert dialogue.events == [
            LinkRequested(LinkMess(SESSION, 11, 0, common_caps=ALL_CAPS)),
            Authenticated(),
        ]

    def test_states_byte_by_byte(self) -> None:
        dialogue = Dialogue(ClientEnd(MAIN), chunk=1)
        dialogue.run()
        assert dialogue.states == [
            State.HEADER,
            State.MESS,
            State.REQUESTED,
            State.MECHANISM,
            State.TICKET,
            State.AUTHENTICATED,
            State.MAIN,
        ]
        assert all(
            after in NEXT[before] for before, after in zip(dialogue.states, dialogue.states[1:], strict=False)
        )

    def test_without_selection_the_ticket_comes_at_once(self) -> None:
        dialogue = Dialogue(ClientEnd(MAIN, common=peer.MINI_HEADER), chunk=1)
        dialogue.run()
        assert State.MECHANISM not in dialogue.states
        assert dialogue.server.state is State.MAIN

    def test_the_mechanism_may_come_before_the_key(self) -> None:
        server = Endpoint()
        assert len(server.receive(peer.link_request() + struct.pack("<I", 1))) == 1
        assert server.offer(PUBLIC, decrypt) == []
        assert server.state is State.TICKET
        assert server.receive(peer.encrypt(PUBLIC, b"")) == [Authenticated()]

    def test_messages_may_come_before_the_result(self) -> None:
        server = Endpoint()
        server.receive(peer.link_request(WEBDAV, SESSION))
        server.offer(PUBLIC, decrypt)
        early = struct.pack("<HI", peer.C_DATA, 3) + b"abc"
        assert server.receive(struct.pack("<I", 1) + peer.encrypt(PUBLIC, b"") + early[:5]) == [
            Authenticated()
        ]
        server.receive(early[5:])
        (event,) = server.accept(SESSION)
        assert isinstance(event, PortData)
        assert bytes(event.data) == b"abc"

    @pytest.mark.parametrize("code", [LinkErr.NEED_SECURED, LinkErr.CHANNEL_NOT_AVAILABLE])
    def test_refused_at_the_request(self, code: LinkErr) -> None:
        client, server = ClientEnd(MAIN), Endpoint()
        server.receive(bytes(client.out))
        server.refuse(code)
        client.receive(b"".join(server.data_to_send()))
        assert (client.error, client.result) == (code, None)
        assert server.closed

    @pytest.mark.parametrize(("channel", "sizes"), [(MAIN, [4, 6 + 32]), (WEBDAV, [4, 6 + 8, 6 + 34])])
    def test_result_and_messages_are_units(self, channel: tuple[int, int], sizes: list[int]) -> None:
        server = Endpoint()
        server.receive(peer.link_request(channel))
        server.offer(PUBLIC, decrypt)
        server.receive(struct.pack("<I", 1) + bytes(128))
        server.data_to_send()
        server.accept(SESSION)
        assert [len(unit) for unit in server.data_to_send()] == sizes
        assert server.data_to_send() == []

    def test_refused_after_the_ticket(self) -> None:
        client, server = ClientEnd(MAIN), Endpoint()
        server.receive(bytes(client.out))
        server.offer(PUBLIC, decrypt)
        client.out.clear()
        client.receive(b"".join(server.data_to_send()))
        assert server.receive(bytes(client.out)) == [Authenticated()]
        server.refuse(LinkErr.BAD_CONNECTION_ID)
        client.receive(b"".join(server.data_to_send()))
        assert (client.error, client.result) == (0, 8)

    @pytest.mark.parametrize(
        ("data", "code"),
        [
            (b"GET / HTTP/1.1\r\n\r\n", LinkErr.INVALID_MAGIC),
            (peer.link_request(major=1), LinkErr.VERSION_MISMATCH),
            (struct.pack("<4sIII", b"REDQ", 2, 2, 2**31), LinkErr.INVALID_DATA),
            (struct.pack("<4sIII", b"REDQ", 2, 2, 0), LinkErr.INVALID_DATA),
            (struct.pack("<4sIIIIBBIII", b"REDQ", 2, 2, 18, 0, 1, 0, 9, 9, 18), LinkErr.INVALID_DATA),
        ],
    )
    def test_nonsense_gets_an_error_reply(self, data: bytes, code: LinkErr) -> None:
        server = Endpoint()
        with pytest.raises(LinkRefused):
            server.receive(data)
        client = ClientEnd()
        client.receive(b"".join(server.data_to_send()))
        assert client.error == code
        assert server.closed

    def test_an_unknown_mechanism(self) -> None:
        server = Endpoint()
        server.receive(peer.link_request())
        server.offer(PUBLIC, decrypt)
        server.data_to_send()
        with pytest.raises(LinkRefused, match="mechanism 2"):
            server.receive(struct.pack("<I", 2))
        assert server.data_to_send() == [struct.pack("<I", LinkErr.INVALID_DATA)]

    def test_a_client_that_does_not_wait_is_cut_off(self) -> None:
        server = Endpoint()
        with pytest.raises(ProtocolError, match="without waiting"):
            server.receive(peer.link_request() + bytes(MAX_EARLY + 1))
        assert server.closed

    @given(
        data=st.binary(max_size=400),
        prefix=st.integers(0, 42),
        sizes=st.lists(st.integers(1, 50), max_size=20),
    )
    def test_garbage_at_any_point(self, data: bytes, prefix: int, sizes: list[int]) -> None:
        dialogue = Dialogue(ClientEnd(), password=b"secret")
        wire = peer.link_request()[:prefix] + data
        try:
            for size in [*sizes, len(wire)]:
                dialogue.to_server(wire[:size])
                wire = wire[size:]
        except ProtocolError:
            assert dialogue.server.closed
        assert dialogue.server.state not in (State.MAIN, State.WEBDAV)


class TestPassword:
    @pytest.mark.parametrize("password", [b"secret", "Grüße".encode(), b"x" * 60])
    def test_right(self, password: bytes) -> None:
        dialogue = Dialogue(ClientEnd(MAIN, password=password), password)
        dialogue.run()
        assert dialogue.client.linked

    @pytest.mark.parametrize(
        ("given", "guess"), [(b"Secret", True), (b"secre", True), (b"secret2", True), (b"", False)]
    )
    @all_chunks
    def test_wrong(self, given: bytes, guess: bool, chunk: int) -> None:
        dialogue = Dialogue(ClientEnd(MAIN, password=given), b"secret", chunk)
        dialogue.run()
        assert dialogue.client.result == LinkErr.PERMISSION_DENIED
        assert dialogue.events[-1] == AuthenticationFailed(guess)
        assert dialogue.server.closed

    def test_what_cannot_be_decrypted_is_wrong(self) -> None:
        server = Endpoint(b"secret")
        server.receive(peer.link_request())
        server.offer(PUBLIC, decrypt)
        server.data_to_send()
        assert server.receive(struct.pack("<I", 1) + bytes(128)) == [AuthenticationFailed(guess=True)]
        assert server.data_to_send() == [struct.pack("<I", 7)]

    def test_without_one_anything_goes(self) -> None:
        dialogue = Dialogue(ClientEnd(MAIN, password=b"left over from another host"))
        dialogue.run()
        assert dialogue.client.linked


class TestMain:
    @all_headers
    def test_the_list_has_the_webdav_channel_alone(self, common: int) -> None:
        dialogue = linked(MAIN, common)
        dialogue.client.send(peer.C_ATTACH)
        dialogue.run()
        assert dialogue.client.messages[-1] == (peer.CHANNELS_LIST, struct.pack("<I2B", 1, 11, 0))

    @all_chunks
    def test_other_messages_are_skipped(self, chunk: int) -> None:
        dialogue = linked(MAIN)
        dialogue.chunk = chunk
        dialogue.client.send(101, bytes(12))  # MAIN_CLIENT_INFO, whose number is that of port data
        dialogue.client.send(107, bytes(2100))  # MAIN_AGENT_DATA
        dialogue.client.send(peer.C_ATTACH)
        dialogue.run()
        assert [kind for kind, _ in dialogue.client.messages] == [peer.MAIN_INIT, peer.CHANNELS_LIST]
        assert dialogue.events[2:] == []

    def test_ping(self) -> None:
        dialogue = linked(MAIN)
        dialogue.server.ping(123_456_789_012)
        dialogue.run()
        assert dialogue.events[-1] == Ponged(123_456_789_012)

    def test_pings_are_told_apart(self) -> None:
        dialogue = linked(MAIN, pongs=False)
        dialogue.server.ping(1)
        dialogue.server.ping(1)
        dialogue.run()
        assert [body for kind, body in dialogue.client.messages if kind == peer.PING] == [
            struct.pack("<IQ", 1, 1),
            struct.pack("<IQ", 2, 1),
        ]

    def test_disconnecting(self) -> None:
        dialogue = linked(MAIN)
        dialogue.client.send(peer.C_DISCONNECTING, struct.pack("<QI", 0, 0))
        dialogue.run()
        assert isinstance(dialogue.events[-1], Ended)
        assert dialogue.server.closed

    def test_no_data_are_sent_on_it(self) -> None:
        with pytest.raises(LocalProtocolError):
            linked(MAIN).server.send_data(b"x")


class TestWebdav:
    @all_headers
    @all_chunks
    def test_data_both_ways(self, common: int, chunk: int) -> None:
        dialogue = linked(WEBDAV, common)
        dialogue.chunk = chunk
        dialogue.client.send(peer.C_DATA, b"from the client")
        dialogue.client.send(peer.C_DATA, b", in two")
        dialogue.server.send_data(b"from the host")
        dialogue.run()
        assert b"".join(e for e in dialogue.events if isinstance(e, bytes)) == b"from the client, in two"
        assert dialogue.client.messages[-1] == (peer.DATA, b"from the host")

    def test_a_whole_frame_is_one_message(self) -> None:
        dialogue = linked()
        dialogue.server.send_data(bytes(MAX_PAYLOAD))
        dialogue.run()
        assert dialogue.client.messages[-1] == (peer.DATA, bytes(10 + 65535))
        with pytest.raises(LocalProtocolError, match="one message"):
            dialogue.server.send_data(bytes(MAX_PAYLOAD + 1))

    def test_the_window_bounds_what_is_under_way(self) -> None:
        dialogue = linked(acks=False)
        sent = 0
        while dialogue.server.room:
            dialogue.server.send_data(b"x")
            sent += 1
        assert sent == 2 * ACK_WINDOW - 1  # PORT_INIT was the first
        with pytest.raises(LocalProtocolError, match="acknowledged"):
            dialogue.server.send_data(b"x")
        dialogue.client.send(peer.C_ACK)
        dialogue.run()
        assert dialogue.events[-1] == Acknowledged()
        assert dialogue.server.room == ACK_WINDOW

    def test_a_client_that_acknowledges_can_take_any_number(self) -> None:
        dialogue = linked()
        for _ in range(10 * ACK_WINDOW):
            dialogue.server.send_data(b"x")
            dialogue.run()
        assert dialogue.client.data == b"x" * 10 * ACK_WINDOW
        assert dialogue.server.room >= ACK_WINDOW

    def test_acknowledgements_cannot_be_saved_up(self) -> None:
        dialogue = linked()
        for _ in range(100):
            dialogue.client.send(peer.C_ACK)
        dialogue.run()
        assert dialogue.server.room == 2 * ACK_WINDOW

    def test_the_client_closes_the_port(self) -> None:
        dialogue = linked()
        dialogue.client.send(peer.C_DATA, b"last words")
        dialogue.client.send(peer.C_PORT_EVENT, b"\x01")
        dialogue.client.send(peer.C_DATA, b"too late")
        dialogue.run()
        assert dialogue.events[-2:] == [b"last words", Ended("the client closed the port")]
        assert dialogue.server.closed

    @pytest.mark.parametrize("event", [b"\x00", b"\x02"])
    def test_other_port_events_change_nothing(self, event: bytes) -> None:
        dialogue = linked()
        dialogue.client.send(peer.C_PORT_EVENT, event)
        dialogue.run()
        assert dialogue.server.state is State.WEBDAV

    def test_compressed_data_were_not_agreed_upon(self) -> None:
        dialogue = linked()
        dialogue.client.send(102, b"\x01\x00\x00\x00\x04abcd")
        with broken(dialogue, "compressed"):
            dialogue.run()

    @pytest.mark.parametrize(
        ("kind", "body"), [(peer.C_PORT_EVENT, b"\x09"), (peer.C_PONG, b""), (peer.C_ACK_SYNC, bytes(5000))]
    )
    def test_broken_messages(self, kind: int, body: bytes) -> None:
        dialogue = linked()
        dialogue.client.send(kind, body)
        with broken(dialogue, "PORT_EVENT|PONG|5000 bytes"):
            dialogue.run()

    @given(data=st.lists(st.binary(max_size=100), max_size=10))
    def test_garbage(self, data: list[bytes]) -> None:
        server = Endpoint()
        server.receive(peer.link_request(WEBDAV, SESSION))
        server.offer(PUBLIC, decrypt)
        server.receive(struct.pack("<I", 1) + bytes(128))
        server.accept(SESSION)
        try:
            for chunk in data:
                for event in server.receive(chunk):
                    assert not isinstance(event, PortData) or len(event.data) <= len(chunk)
        except ProtocolError:
            assert server.closed


OUT_OF_TURN: list[Callable[[Endpoint], object]] = [
    lambda server: server.offer(PUBLIC, decrypt),
    lambda server: server.accept(SESSION),
    lambda server: server.refuse(LinkErr.ERROR),
    lambda server: server.ping(0),
    lambda server: server.send_data(b"x"),
]


@pytest.mark.parametrize("call", OUT_OF_TURN)
def test_nothing_can_be_called_out_of_turn(call: Callable[[Endpoint], object]) -> None:
    with pytest.raises(LocalProtocolError):
        call(Endpoint())


def test_every_state_can_be_left_for_closed() -> None:
    assert set(NEXT) == set(State)
    assert {state for state in State if State.CLOSED not in NEXT[state]} == {State.CLOSED}
