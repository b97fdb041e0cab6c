"""Groups as a bus looks after them: declared, and deleted, in all generations of their topic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from messaging.errors import ConfigurationError
from messaging.message import Endpoint, Topic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from messaging.app import App
    from messaging.bus import Bus


async def declare(bus: Bus, what: App | Topic[Any] | Endpoint[Any, Any], names: Sequence[str] = ()) -> None:
    """Create, or verify, an app's topics and groups, or a topic and these groups of it. Raises as `Bus.declare`."""
    catalogue = bus.catalogue
    if isinstance(what, (Topic, Endpoint)):
        if isinstance(names, str):
            raise ConfigurationError(f"declare(groups=...) takes names of groups, for instance [{names!r}]")
        topic = what.topic if isinstance(what, Endpoint) else what
        spec = catalogue.spec(topic)
        wanted = [catalogue.group(spec, name) for name in names]
        await catalogue.declare(wanted, [spec], again=True)
    else:
        from messaging.app import App
        from messaging.definition import check_kind

        check_kind(what, App, "declare() takes an App, a Topic or an Endpoint")
        for made in what.plans(bus):
            await catalogue.declare([made.group], [made.group.topic], made.topology, again=True)


async def delete(bus: Bus, topic: Topic[Any], name: str) -> None:
    """Delete a group with all that is kept for it. Absent is no error. Raises ConnectionFailed."""
    catalogue = bus.catalogue
    group = catalogue.group(catalogue.spec(topic), name)
    adapter = bus.broker(topic).adapter
    for one in await catalogue.refresh(group.topic, at_once=True):
        await adapter.delete_group(catalogue.in_generation(group, one))
    catalogue.forget(group)
