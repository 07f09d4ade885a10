"""What time does to two devices: keepalives, rekeys, expiry."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ebpfvpn import actions, peer, wire
from ebpfvpn.endpoint import Endpoint
from ebpfvpn.peer import NO_TRAFFIC
from ebpfvpn.timers import Timer, Timers
from protocol.harness import POLL, START, Network, Node, pair


def established(**options: object) -> tuple[Network, Node, Node]:
    """Alice initiated, at START; both have spoken."""
    network, alice, bob = pair(**options)
    alice.send(b"hello")
    network.run(0.1)
    bob.send(b"hello")
    network.run(0.9)
    return network, alice, bob


def keep_talking(network: Network, seconds: float, *talkers: Node, every: float = 1.0) -> None:
    for _ in range(round(seconds / every)):
        for node in talkers:
            node.send(b"data")
        network.run(every)


def test_idle_devices_sleep() -> None:
    network, alice, bob = established()
    network.run(60)
    sent = network.sent
    network.run(100)
    assert network.sent == sent
    assert alice.initiations() + bob.initiations() == 1


def test_data_without_an_answer_gets_a_keepalive_after_ten_seconds() -> None:
    network, alice, bob = established()
    network.run(20)
    before = len(bob.took(actions.Keepalive))
    alice.send(b"data")
    network.run(9.9)
    assert len(bob.took(actions.Keepalive)) == before
    network.run(0.2)
    assert len(bob.took(actions.Keepalive)) == before + 1
    network.run(100)
    assert len(bob.took(actions.Keepalive)) == before + 1
    assert alice.initiations() == 1


def test_data_with_an_answer_gets_no_keepalive() -> None:
    network, alice, bob = established()
    network.run(20)
    alice.done.clear()
    bob.done.clear()
    keep_talking(network, 40, alice, bob)
    assert not alice.took(actions.Keepalive)
    assert not bob.took(actions.Keepalive)


def test_keepalives_are_not_answered() -> None:
    network, alice, bob = established()
    network.run(30)
    alice.done.clear()
    bob.done.clear()
    alice._seal(1, b"")
    network.run(60)
    assert alice.done == bob.done == []


@pytest.mark.parametrize("talker", ["initiator", "responder"])
def test_silence_makes_either_role_shake_hands_anew_after_fifteen_seconds(talker: str) -> None:
    network, alice, bob = established()
    network.run(30)
    node = alice if talker == "initiator" else bob
    before = node.initiations()
    network.lost = lambda data, source: data[0] == wire.Data.TYPE
    node.send(b"data")
    network.run(14.9)
    assert node.initiations() == before
    network.run(1)
    assert node.initiations() == before + 1


def test_silence_is_noticed_as_long_as_data_is_sent() -> None:
    network, alice, bob = established()
    network.lost = lambda data, source: True
    keep_talking(network, 400, alice)
    assert 400 / 5.334 - 4 <= alice.initiations() <= 400 / 5
    assert not alice.took(actions.GaveUp)
    network.lost = lambda data, source: False
    network.run(6)
    assert alice.current()
    assert bob.current()


def test_a_handshake_message_counts_as_an_answer() -> None:
    network, alice, bob = established()
    network.run(30)
    network.lost = lambda data, source: data[0] == wire.Data.TYPE
    alice.send(b"data")
    network.run(14)
    bob.device._start_handshake(bob.device._peers[1], network.now)
    bob.act()
    network.run(1)
    alice.send(b"data")
    network.run(13.9)
    assert alice.initiations() == 1
    network.run(1)
    assert alice.initiations() == 2


def test_an_initiation_acknowledges_data_but_not_later_data() -> None:
    timers = Timers(0, lambda: 0.0)
    first = replace(NO_TRAFFIC, last_data_received=10.0, unacknowledged_since=10.0)
    timers.data_traversed(first)
    assert timers.deadlines == {Timer.SEND_KEEPALIVE: 20.0}
    timers.handshake_message_sent(15.0)
    timers.data_traversed(first)
    assert timers.deadlines == {}
    timers.data_traversed(replace(first, last_data_received=16.0))
    assert timers.deadlines == {Timer.SEND_KEEPALIVE: 25.0}
    assert timers.expired(24.9) is None
    assert timers.expired(25.0) is Timer.SEND_KEEPALIVE
    assert timers.expired(25.0) is None
    timers.data_traversed(replace(first, last_data_received=26.0))
    assert timers.deadlines == {Timer.SEND_KEEPALIVE: 35.0}


def test_after_silence_was_noticed_the_count_starts_anew() -> None:
    timers = Timers(0, lambda: 0.0)
    traffic = replace(NO_TRAFFIC, last_data_sent=10.0, unanswered_since=10.0)
    timers.data_traversed(traffic)
    assert timers.expired(25.0) is Timer.NEW_HANDSHAKE
    timers.data_traversed(traffic)
    assert timers.deadlines == {}
    timers.data_traversed(replace(traffic, last_data_sent=26.0))
    assert timers.deadlines == {Timer.NEW_HANDSHAKE: 40.0}


def test_who_gives_up_also_sends_no_keepalive() -> None:
    timers = Timers(0, lambda: 0.0)
    timers.handshake_initiated(10.0)
    waiting = replace(NO_TRAFFIC, last_data_received=11.0, unacknowledged_since=11.0)
    timers.data_traversed(waiting)
    timers.handshake_given_up()
    assert timers.deadlines == {}


@pytest.mark.parametrize("interval", [1, 25])
def test_persistent_keepalive_starts_by_itself_and_keeps_the_interval(interval: int) -> None:
    network = Network()
    alice, bob = Node(network, 1), Node(network, 2)
    alice.add(bob, persistent_keepalive=interval)
    bob.add(alice)
    assert alice.device.next_deadline() is not None
    network.run(1)
    assert bob.current()
    alice.done.clear()
    network.run(100)
    expected = 100 / interval
    assert expected - 2 <= len(alice.took(actions.Keepalive)) <= expected + 1


def test_persistent_keepalive_waits_while_there_is_traffic() -> None:
    network, alice, bob = established(persistent_keepalive=25)
    alice.done.clear()
    keep_talking(network, 100, bob, every=8.0)
    assert not bob.took(actions.Keepalive)


def test_persistent_keepalive_goes_on_trying_after_silence_and_rekeys() -> None:
    network, alice, bob = established(persistent_keepalive=25)
    network.lost = lambda data, source: True
    network.run(1000)
    network.lost = lambda data, source: False
    network.run(30)
    assert alice.current()
    assert bob.current()
    network.run(1000)
    assert alice.current()
    assert bob.current()


def test_persistent_keepalive_begins_when_the_endpoint_is_known() -> None:
    network = Network()
    alice, bob = Node(network, 1), Node(network, 2)
    alice.add(bob, reachable=False, persistent_keepalive=25)
    bob.add(alice)
    network.run(60)
    assert alice.done == []
    alice.device.set_endpoint(1, bob.address)
    network.run(1)
    assert bob.current()


def test_the_initiator_rekeys_when_it_sends_after_two_minutes() -> None:
    network, alice, bob = established()
    keep_talking(network, 119, alice, bob)
    assert alice.initiations() + bob.initiations() == 1
    keep_talking(network, 3, alice, bob)
    assert alice.initiations() == 2
    assert bob.initiations() == 0
    current = alice.current()
    assert current
    assert current.session.created == pytest.approx(START + 120, abs=2)


def test_nothing_is_lost_over_rekeys() -> None:
    network, alice, bob = established()
    before = len(bob.received)
    keep_talking(network, 1000, alice, bob, every=0.25)
    network.run(1)
    assert len(bob.received) - before == 4000
    assert len(alice.took(actions.Install)) == pytest.approx(1000 / 120, abs=1.5)
    assert len(alice.sessions) <= 2


def test_an_idle_session_is_not_rekeyed() -> None:
    network, alice, bob = established()
    network.run(400)
    assert alice.initiations() + bob.initiations() == 1
    assert not alice.sessions
    assert not bob.sessions


def test_who_only_receives_rekeys_each_session_at_its_last_minute() -> None:
    network, alice, bob = established()
    for number in (2, 3):
        network.run(162)
        bob.send(b"data")
        network.run(1)
        assert alice.initiations() == number - 1
        network.run(3)
        bob.send(b"data")
        network.run(1)
        assert alice.initiations() == number
    assert bob.initiations() == 0


def test_a_last_minute_handshake_is_not_tried_for_longer_by_what_is_still_received() -> None:
    network, alice, bob = established()
    network.run(165)
    # Its keepalives would be a reason of their own.
    alice.device._keepalive = lambda peer, now: None  # type: ignore[method-assign]
    network.lost = lambda data, source: data[0] != wire.Data.TYPE
    keep_talking(network, 98, bob)
    assert alice.took(actions.GaveUp)


def test_a_responder_does_not_rekey_by_age() -> None:
    network = Network()
    alice, bob = Node(network, 1, rekey_after_time=1000.0), Node(network, 2)
    alice.add(bob)
    bob.add(alice)
    keep_talking(network, 177, alice)
    assert bob.initiations() == 0


def test_the_age_and_the_number_of_messages_can_be_lowered() -> None:
    for options in ({"rekey_after_time": 3.0}, {"rekey_after_messages": 30}):
        network = Network()
        alice, bob = Node(network, 1, **options), Node(network, 2)
        alice.add(bob)
        bob.add(alice)
        keep_talking(network, 60, alice, bob, every=0.1)
        assert len(bob.received) == 600
        assert 8 <= alice.initiations() <= 12
        assert bob.initiations() <= 1


def test_a_responder_rekeys_after_too_many_messages() -> None:
    network = Network()
    alice, bob = Node(network, 1), Node(network, 2, rekey_after_messages=10)
    alice.add(bob)
    bob.add(alice)
    keep_talking(network, 15, alice)
    assert bob.initiations() == 0
    keep_talking(network, 12, bob)
    assert bob.initiations() == 1


def test_the_datapath_says_when_messages_are_used() -> None:
    """Without waiting for the figures to be asked for; a session that is not current any more
    calls for nothing."""
    network, alice, _ = established()
    network.run(10)
    before = alice.initiations()
    current = alice.device.status(1).current
    assert current is not None
    alice.device.messages_used(1, current.local_index + 1, network.now)
    alice.device.messages_used(99, current.local_index, network.now)
    alice.act()
    assert alice.initiations() == before
    alice.device.messages_used(1, current.local_index, network.now)
    alice.act()
    assert alice.initiations() == before + 1
    network.run(1)
    renewed = alice.device.status(1).current
    assert renewed is not None
    assert renewed.local_index != current.local_index


def test_sessions_end_after_three_minutes_each_retired_once() -> None:
    network, alice, bob = established()
    network.run(178.9)
    assert len(alice.sessions) == len(bob.sessions) == 1
    network.run(1)
    assert not alice.sessions
    assert not bob.sessions
    assert alice.device.status(1).current is None
    assert alice.device.status(1).latest_handshake == pytest.approx(START, abs=1)
    assert alice.device.next_deadline() is None


def test_an_unconfirmed_session_ends_too() -> None:
    network, alice, bob = pair()
    network.lost = lambda data, source: data[0] == wire.Data.TYPE
    alice.device.want_session(1, network.now)
    alice.act()
    network.run(181)
    assert len(bob.took(actions.Install)) == 1
    assert not bob.sessions


def test_no_key_material_is_left_after_long_silence() -> None:
    network, alice, bob = established()
    network.lost = lambda data, source: True
    keep_talking(network, 30, alice, bob)
    network.run(3 * wire.REJECT_AFTER_TIME)
    for node in (alice, bob):
        peer = node.device._peers[1]
        assert peer.initiation is None
        assert not list(peer.keypairs)
        assert not node.device._by_index


def test_a_new_session_leaves_the_one_before_usable_for_what_is_on_its_way() -> None:
    network, alice, bob = established()
    network.run(5)
    first = alice.current()
    alice.device._start_handshake(alice.device._peers[1], network.now)
    alice.act()
    network.run(1)
    second = alice.current()
    assert first
    assert second
    assert first.session.local_index != second.session.local_index
    assert set(alice.sessions) == {first.session.local_index, second.session.local_index}
    status = bob.device.status(1)
    assert status.previous
    assert status.current
    assert status.previous.local_index == first.session.remote_index
    assert status.current.local_index == second.session.remote_index


def test_idle_peers_cost_nothing() -> None:
    network = Network()
    alice = Node(network, 1)
    others = [Node(network, 2 + number) for number in range(200)]
    for number, other in enumerate(others):
        alice.add(other, number)
        other.add(alice)
    others[7].send(b"data")
    network.run(30)
    touched: list[int] = []
    settle = alice.device._settle
    alice.device._settle = lambda peer: (touched.append(peer.number), settle(peer))[1]  # type: ignore[method-assign, func-returns-value]
    network.run(300)
    assert set(touched) == {7}


def test_late_traffic_of_a_lost_poll_does_not_move_timers_back() -> None:
    network, alice, _ = established(persistent_keepalive=25)
    deadline = alice.device.next_deadline()
    traffic = alice.peers[1].traffic
    alice.device.traffic(1, replace(traffic, last_sent=START - 50, tx_packets=9), 0, network.now)
    assert alice.device.next_deadline() == deadline


def test_roaming_by_data_is_followed_by_handshakes() -> None:
    network, alice, bob = established()
    del network.nodes[(alice.address.address, alice.address.port)]
    alice.address = Endpoint(alice.address.address, 4242)
    network.nodes[(alice.address.address, alice.address.port)] = alice
    alice.send(b"from elsewhere")
    network.run(POLL)
    assert bob.device.status(1).endpoint == alice.address
    bob.send(b"to elsewhere")
    network.run(1)
    assert alice.received[-1] == b"to elsewhere"


@pytest.mark.parametrize("fading", [peer._MOST_FADING, 0])
def test_handshakes_of_both_ends_that_cross_cost_nothing(
    monkeypatch: pytest.MonkeyPatch, fading: int
) -> None:
    """What one end still seals with, the other still opens."""
    monkeypatch.setattr(peer, "_MOST_FADING", fading)
    network = Network()
    alice = Node(network, 1, rekey_after_messages=20)
    bob = Node(network, 2, rekey_after_messages=20)
    alice.add(bob)
    bob.add(alice)
    alice.send(b"one")
    network.run(10)
    network.delay = lambda: 0.25
    sent = 0
    for _ in range(600):
        for node in (alice, bob):
            node.send(b"data")
        sent += 1
        network.run(0.1)
    network.run(1)
    assert alice.initiations() >= 10
    assert bob.initiations() >= 10
    lost = 2 * sent + 1 - len(alice.received) - len(bob.received)
    assert (lost == 0) == (fading > 0)
