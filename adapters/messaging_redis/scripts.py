"""The scripts that run on the server, one file each under `lua/`, and how they are called.

Every key of a script has the hash tag of one topic. A script that must work when the server is out of memory, because
what empties it needs it, says so in its first line (`flags=allow-oom`); what it writes is small, or replaces what it
removes.
"""

from __future__ import annotations

from hashlib import sha1
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from messaging_redis.line import Argument, Command

_FOLDER = files("messaging_redis") / "lua"
_SHARED = (_FOLDER / "shared.lua").read_text()


class Script:
    """One script: its source, and its name on the server."""

    __slots__ = ("name", "sha", "source")

    def __init__(self, name: str) -> None:
        self.name = name
        source = (_FOLDER / f"{name}.lua").read_text()
        if source.startswith("#!"):
            first, _, rest = source.partition("\n")
            source = f"{first}\n{_SHARED}\n{rest}"
        else:
            source = f"{_SHARED}\n{source}"
        self.source = source
        self.sha = sha1(source.encode(), usedforsecurity=False).hexdigest()
        _BY_SHA[self.sha] = self

    def call(self, keys: Sequence[str], arguments: Sequence[Argument]) -> list[Argument]:
        """The command that runs it, by its name on the server."""
        return ["EVALSHA", self.sha, len(keys), *keys, *arguments]


_BY_SHA: dict[str, Script] = {}


def with_source(command: Command) -> Command:
    """The same command with the source in it, for a server that does not know the name yet."""
    return ["EVAL", _BY_SHA[str(command[1])].source, *command[2:]]


# Topics and groups
DECLARE_TOPIC = Script("declare_topic")
DECLARE_GROUP = Script("declare_group")
MAKE_GROUP = Script("make_group")
DELETE_GROUP = Script("delete_group")
GROUP_STATE = Script("group_state")
TRIM = Script("trim")
# Publishing
PUBLISH = Script("publish")
PUBLISH_ONCE = Script("publish_once")
REDRIVE = Script("redrive")
# Members that share all partitions
TAKE = Script("take")
TAKE_OVER = Script("take_over")
RECOVER = Script("recover")
SETTLE = Script("settle")
ACK_COPIES = Script("ack_copies")
EXTEND = Script("extend")
ISOLATE = Script("isolate")
MOVE = Script("move")
LEAVE = Script("leave")
# Members that own partitions
HEARTBEAT = Script("heartbeat")
FENCED_READ = Script("fenced_read")
FENCED_ACK = Script("fenced_ack")
FENCED_SETTLE = Script("fenced_settle")
FENCED_ISOLATE = Script("fenced_isolate")
GIVE_BACK = Script("give_back")
PUT_BACK = Script("put_back")
# Idempotency
BEGIN = Script("begin")
FINISH = Script("finish")
