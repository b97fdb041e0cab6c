from enum import Enum
from string import ascii_letters, digits

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from messaging import Endpoint, Topic
from messaging.errors import ConfigurationError
from messaging.names import NameRules, check_group, check_namespace, check_topic, physical

WITH_COLON = NameRules(maximum=255, prefix="messaging")
STRICT = NameRules(maximum=80, separator="-", escape="_", legal=ascii_letters + digits + "_-")
RULES = pytest.mark.parametrize("rules", [WITH_COLON, STRICT], ids=["with colon", "strict"])

letters = ascii_letters + digits + "_"
# Few characters, so that Hypothesis finds neighbours: separators, escapes and what looks like other parts.
names = st.text("ab12-._h", min_size=1, max_size=200).filter(lambda name: name[0] not in ".-")
parts = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["topic", "queue", "a", "1"]),
        "topic": names,
        "group": st.none() | names,
        "partition": st.none() | st.integers(0, 12),
        "namespace": st.none() | names,
        "generation": st.integers(1, 12),
    }
)


@pytest.mark.parametrize("check", [check_topic, check_group, check_namespace])
@pytest.mark.parametrize("name", ["orders", "_", "0", "Orders.v2-eu_west", "a" * 200])
def test_portable_names_pass(check, name: str) -> None:
    assert check(name) == name


@pytest.mark.parametrize("check", [check_topic, check_group, check_namespace])
@pytest.mark.parametrize("name", ["", ".a", "-a", "a b", "a:b", "é", "a\n", "a" * 201, None, 3, b"a"])
def test_other_names_are_refused_by_name(check, name: object) -> None:
    with pytest.raises(ConfigurationError, match="illegal .* name"):
        check(name)


@pytest.mark.parametrize("name", ["messaging.error", "messaging.generation.end", "messaging."])
def test_a_topic_is_not_named_as_the_librarys_own_messages(name: str) -> None:
    with pytest.raises(ConfigurationError, match="kept for the library"):
        Topic(name)
    with pytest.raises(ConfigurationError, match="kept for the library"):
        Endpoint(name, str, str)
    assert [Topic(near).name for near in ("messaging", "messaging_error", "my.messaging.error")]
    assert check_group(name) == name


@RULES
@given(one=parts, other=parts)
@example(
    one={"role": "a", "topic": "b", "group": None, "partition": 1, "namespace": None, "generation": 1},
    other={"role": "a", "topic": "b", "group": "1", "partition": None, "namespace": None, "generation": 1},
)
@example(
    one={"role": "a", "topic": "b", "group": None, "partition": None, "namespace": "c", "generation": 1},
    other={"role": "c", "topic": "a", "group": "b", "partition": None, "namespace": None, "generation": 1},
)
def test_different_things_never_share_a_name(rules: NameRules, one: dict, other: dict) -> None:
    assume(one != other)

    assert physical(rules, **one) != physical(rules, **other)


@RULES
@given(thing=parts)
def test_every_name_is_legal_and_short_enough(rules: NameRules, thing: dict) -> None:
    name = physical(rules, **thing)

    assert 0 < len(name) <= rules.maximum
    assert set(name) <= set(rules.legal)


@RULES
def test_names_that_differ_only_at_the_end_differ_after_truncation(rules: NameRules) -> None:
    long = "a" * 199

    assert physical(rules, "queue", topic=long + "b", group=long) != physical(
        rules, "queue", topic=long + "c", group=long
    )
    assert physical(rules, "queue", topic=long, group=long + "b") != physical(
        rules, "queue", topic=long, group=long + "c"
    )


def test_a_member_of_an_enum_is_the_name_that_it_stands_for() -> None:
    class Names(str, Enum):  # noqa: UP042  as programs have it that are older than StrEnum
        ORDERS = "orders"

    assert [type(check(Names.ORDERS)) for check in (check_topic, check_group, check_namespace)] == [str] * 3
    assert check_topic(Names.ORDERS) == "orders"


def test_generation_one_adds_nothing_and_names_are_readable() -> None:
    assert physical(WITH_COLON, "topic", topic="orders") == "messaging:topic:orders"
    assert (
        physical(WITH_COLON, "queue", topic="orders", group="billing", partition=3)
        == "messaging:queue:orders:billing:3"
    )
    assert (
        physical(WITH_COLON, "queue", topic="orders", group="billing", generation=2, namespace="staging")
        == "messaging:staging::queue:orders:billing::2"
    )
    assert physical(STRICT, "queue", topic="orders.v2") == "queue-orders_2ev2"


def test_illegal_parts_are_refused() -> None:
    for wrong in ({"topic": "a:b"}, {"topic": "a", "group": ""}, {"topic": "a", "namespace": "x y"}):
        with pytest.raises(ConfigurationError):
            physical(WITH_COLON, "topic", **wrong)
    with pytest.raises(ValueError, match="role"):
        physical(WITH_COLON, "a:b", topic="a")


@pytest.mark.parametrize(
    "rules",
    [
        {"separator": "::"},
        {"separator": "_", "escape": "_"},
        {"separator": "/"},
        {"separator": "-"},
        {"legal": "abc:"},
        {"prefix": "a:b"},
        {"maximum": 20},
    ],
)
def test_rules_that_could_not_be_injective_are_refused(rules: dict) -> None:
    with pytest.raises(ValueError, match="."):
        NameRules(**{"maximum": 100, **rules})
