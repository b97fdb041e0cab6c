"""Units are dealt to members that come, go, are busy, and remember wrongly what they own."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from messaging_kafka.assignor import Claim, deal, decode_claim, decode_share, encode_claim, encode_share

names = st.sampled_from(["ann", "bob", "cat", "dan", "eve"])
kinds = st.lists(st.integers(1, 9), min_size=1, max_size=2).map(
    lambda sizes: [range(sum(sizes[:at]), sum(sizes[: at + 1])) for at in range(len(sizes))]
)


@st.composite
def groups(draw):
    """Units by kind, and what members say of themselves: some claim what others claim too."""
    units = draw(kinds)
    every = range(units[-1].stop)
    owned = st.lists(st.sampled_from(every), unique=True).map(tuple)
    claim = st.builds(Claim, owned=owned, generation=st.integers(-1, 3), busy=st.booleans())
    return units, draw(st.dictionaries(names, claim, min_size=1))


def owner_of(claims, unit):
    """Whose claim counts: the one with the later generation."""
    rivals = [(claim.generation, name) for name, claim in claims.items() if unit in claim.owned]
    return max(rivals)[1] if rivals else None


def after(claims, shares, generation):
    """What the members say when they have done as they were told."""
    return {
        name: Claim(tuple(sorted(shares[name].units - shares[name].give_up)), generation, claim.busy)
        for name, claim in claims.items()
    }


def settled(units, claims):
    """Deal until nothing has to move any more."""
    for generation in range(10, 16):
        shares = deal(claims, units)
        if not any(share.give_up for share in shares.values()):
            return shares
        claims = after(claims, shares, generation)
    raise AssertionError(f"the group does not come to rest: {claims}")


@given(groups())
@settings(max_examples=100)
def test_no_unit_has_two_owners_and_none_is_taken_from_its_owner_before_it_let_go(group):
    units, claims = group
    shares = deal(claims, units)

    owners = Counter(unit for share in shares.values() for unit in share.units)
    assert all(count == 1 for count in owners.values()), owners
    for name, share in shares.items():
        assert share.give_up <= share.units
        for unit in share.units:
            assert owner_of(claims, unit) in {name, None}
    for kind in units:
        for unit in kind:
            assert unit in owners or owner_of(claims, unit) is None


@given(groups())
@settings(max_examples=100)
def test_the_group_comes_to_rest_with_all_dealt_and_none_with_two_more_than_another(group):
    units, claims = group
    shares = settled(units, claims)

    assert set().union(*(share.units for share in shares.values())) == set(range(units[-1].stop))
    free = [name for name, claim in claims.items() if not claim.busy] or list(claims)
    for at, kind in enumerate(units):
        takers = list(claims) if at == 0 else free
        counts = [len(shares[name].units & set(kind)) for name in takers]
        assert max(counts) - min(counts) <= 1, counts


@given(groups())
@settings(max_examples=100)
def test_a_group_at_rest_moves_nothing_and_a_leave_moves_only_what_is_free(group):
    units, claims = group
    shares = settled(units, claims)
    claims = after(claims, shares, 20)
    assert all(
        (again.units, again.give_up) == (shares[name].units, set())
        for name, again in deal(claims, units).items()
    )

    if len(claims) > 1 and not any(claim.busy for claim in claims.values()):
        leaver = min(claims)
        left = {name: claim for name, claim in claims.items() if name != leaver}
        for name, share in deal(left, units[:1]).items():
            assert share.units >= {unit for unit in left[name].owned if unit in units[0]}
            assert not share.give_up


@given(groups())
def test_claims_and_shares_survive_the_wire(group):
    units, claims = group

    for claim in claims.values():
        assert decode_claim(encode_claim(claim)) == claim
    for share in deal(claims, units).values():
        assert decode_share(encode_share(share)) == share


@given(
    st.none() | st.binary(max_size=60) | st.from_regex(rb'\{"(owned|units|generation)": ?[\[\]0-9a-z,"{}]*\}')
)
def test_what_is_unreadable_claims_nothing_that_is_no_unit(data):
    claim, share = decode_claim(data), decode_share(data)

    assert all(type(unit) is int for unit in (*claim.owned, *share.units))
    assert share.give_up <= share.units
