"""The tags that are the record of a topic or a group (16): their names, and how a program is compared with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from messaging.errors import ConfigurationError

if TYPE_CHECKING:
    from messaging.adapter import GroupSpec, TopicSpec

PARTITIONS = "messaging-partitions"
ORDERED = "messaging-ordered"
FORMAT = "messaging-format"
TOPIC = "messaging-topic"
GROUP = "messaging-group"
GENERATION = "messaging-generation"
WRITTEN = "1"
"""The format that this version writes."""


def group_tags(group: GroupSpec) -> dict[str, str]:
    """The tags of a group's queues."""
    tags = {TOPIC: group.topic.name, GROUP: group.name, ORDERED: yes(group.ordered)}
    if group.topic.generation > 1:
        tags[GENERATION] = str(group.topic.generation)
    return tags


def compare(spec: TopicSpec, stored: dict[str, str], *, ordered: bool | None) -> None:
    """Raises ConfigurationError naming both sides; what the record does not say is not compared (16)."""
    partitions = int(stored.get(PARTITIONS, spec.partitions))
    kept_order = stored.get(ORDERED, yes(spec.ordered)) == yes(True) if ordered is None else ordered
    if (partitions, kept_order) != (spec.partitions, spec.ordered):
        raise ConfigurationError(
            f"topic {spec.name!r} has {partitions} partitions and is {spoken(kept_order)} on the service, and this "
            f"program asks for {spec.partitions} partitions, {spoken(spec.ordered)}: the service's record counts. Set "
            f"the same in the topic or its settings, or change it by `messaging generations begin`."
        )
    if stored.get(FORMAT, WRITTEN) != WRITTEN:
        raise ConfigurationError(
            f"topic {spec.name!r} has format {stored[FORMAT]} on the service; this version writes {WRITTEN}"
        )


def different_order(group: GroupSpec) -> ConfigurationError:
    """The service has the group with the other order (16)."""
    return ConfigurationError(
        f"group {group.name!r} of topic {group.topic.name!r} is {spoken(not group.ordered)} on the service, and this "
        f"program asks for {spoken(group.ordered)}: subscribe alike, or delete the group, or use another group name"
    )


def spoken(ordered: bool) -> str:
    """As errors call it."""
    return "ordered" if ordered else "unordered"


def yes(value: bool) -> str:
    """As tags have it."""
    return "true" if value else "false"
