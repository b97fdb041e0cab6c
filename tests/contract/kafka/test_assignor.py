"""Who owns what: pure, no broker."""

from collections.abc import Mapping

import pytest

from messaging_kafka.assignor import (
    Claim,
    Share,
    deal,
    decode_claim,
    decode_share,
    encode_claim,
    encode_share,
)


def settle(members: Mapping[str, Claim], kinds: list[range]) -> dict[str, Share]:
    """Deal until nobody has to give anything up, as members do by joining again."""
    claims = dict(members)
    for generation in range(1, 10):
        shares = deal(claims, kinds)
        claims = {
            member: Claim(tuple(sorted(share.units - share.give_up)), generation, claims[member].busy)
            for member, share in shares.items()
        }
        if not any(share.give_up for share in shares.values()):
            return shares
    raise AssertionError("it never ends")


def test_units_are_dealt_out_evenly_and_all() -> None:
    shares = settle({name: Claim() for name in "abc"}, [range(8), range(8, 24)])

    assert sorted(unit for share in shares.values() for unit in share.units) == list(range(24))
    assert {len(share.units) for share in shares.values()} == {8}
    assert {len([unit for unit in share.units if unit < 8]) for share in shares.values()} == {2, 3}


def test_no_unit_has_two_owners_while_it_moves() -> None:
    claims = {"old": Claim(tuple(range(8)), 3), "new": Claim()}

    shares = deal(claims, [range(8)])

    assert shares["old"].units == set(range(8))
    assert len(shares["old"].give_up) == 4
    assert shares["new"].units == set()


def test_a_join_moves_no_more_than_it_must() -> None:
    before = {"a": Claim((0, 1, 2, 3), 1), "b": Claim((4, 5, 6, 7), 1)}

    shares = settle({**before, "c": Claim()}, [range(8)])

    assert shares["a"].units < set(before["a"].owned)
    assert shares["b"].units < set(before["b"].owned)
    assert len(shares["c"].units) == 2


def test_a_leave_moves_only_what_is_free() -> None:
    shares = deal({"a": Claim((0, 1, 2), 4), "b": Claim((3, 4, 5), 4)}, [range(8)])

    assert shares["a"].units > {0, 1, 2}
    assert shares["b"].units > {3, 4, 5}
    assert not any(share.give_up for share in shares.values())


def test_what_runs_longest_is_kept() -> None:
    """The first of a claim is what its member wants to keep most."""
    shares = deal({"a": Claim((3, 1, 0, 2), 1), "b": Claim()}, [range(4)])

    assert shares["a"].give_up == {0, 2}


def test_of_two_that_claim_the_same_the_later_generation_counts() -> None:
    shares = deal({"stale": Claim((0, 1), 3), "owner": Claim((0, 1), 4)}, [range(2)])

    assert shares["owner"].units == {0, 1}
    assert shares["stale"].units == set()


def test_delays_and_relief_go_to_members_with_room() -> None:
    shares = settle({"busy": Claim((0, 1, 2, 3), 1, busy=True), "free": Claim()}, [range(2), range(2, 4)])

    assert shares["free"].units >= {2, 3}
    assert len(shares["busy"].units) == 1
    assert shares["busy"].relief


def test_where_all_are_busy_they_share_and_nobody_hopes_for_relief() -> None:
    shares = settle({name: Claim((), 1, busy=True) for name in "ab"}, [range(2), range(2, 4)])

    assert {len(share.units) for share in shares.values()} == {2}
    assert not any(share.relief for share in shares.values())


def test_due_retries_are_shared_by_members_with_room_and_their_number_is_told() -> None:
    kinds = [range(4), range(4, 6), range(6, 10)]
    shares = settle({"busy": Claim((), 1, busy=True), "one": Claim(), "two": Claim()}, kinds)

    assert [len(shares[name].units & {6, 7, 8, 9}) for name in ("busy", "one", "two")] == [0, 2, 2]
    assert {share.shared for share in shares.values()} == {4}


def test_a_leader_of_an_earlier_version_shares_no_due_retries() -> None:
    assert decode_share(b'{"units": [1], "give_up": [], "relief": true}') == Share({1}, relief=True)


def test_claims_and_shares_survive_the_wire() -> None:
    claim = Claim((5, 1), 7, busy=True)
    share = Share({1, 2}, {2}, relief=True, shared=4)

    assert decode_claim(encode_claim(claim)) == claim
    assert decode_share(encode_share(share)) == share


@pytest.mark.parametrize(
    "raw", [None, b"", b"{", b"[]", b'{"owned": 7}', b'{"owned": ["x"], "generation": "y"}']
)
def test_what_is_unreadable_claims_nothing(raw: bytes | None) -> None:
    assert decode_claim(raw).owned == ()
    assert decode_share(raw).units == set()
