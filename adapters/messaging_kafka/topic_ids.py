"""The ids of topics: one that is deleted and made again has the same name, and another id."""

from __future__ import annotations

from typing import Any

from messaging_kafka.library import Api, Types

NO_ID = bytes(16)


class Id:
    """A UUID, as bytes."""

    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value

    @classmethod
    def decode(cls, data: Any) -> bytes:
        found: bytes = data.read(len(NO_ID))
        return found


_NAME: Any = Types.CompactString("utf-8")
_NUMBERS: Any = Types.CompactArray(Types.Int32)
_TAGS: Any = ("tags", Types.TaggedFields)


class MetadataWithIds(Api.Response):  # type: ignore[misc]  # aiokafka has no types
    """Version 12 of the answer."""

    API_KEY = 3
    API_VERSION = 12
    SCHEMA = Types.Schema(
        ("throttle_time_ms", Types.Int32),
        (
            "brokers",
            Types.CompactArray(
                ("node_id", Types.Int32),
                ("host", _NAME),
                ("port", Types.Int32),
                ("rack", _NAME),
                _TAGS,
            ),
        ),
        ("cluster_id", _NAME),
        ("controller_id", Types.Int32),
        (
            "topics",
            Types.CompactArray(
                ("error_code", Types.Int16),
                ("name", _NAME),
                ("topic_id", Id),
                ("is_internal", Types.Boolean),
                (
                    "partitions",
                    Types.CompactArray(
                        ("error_code", Types.Int16),
                        ("partition", Types.Int32),
                        ("leader", Types.Int32),
                        ("leader_epoch", Types.Int32),
                        ("replicas", _NUMBERS),
                        ("isr", _NUMBERS),
                        ("offline_replicas", _NUMBERS),
                        _TAGS,
                    ),
                ),
                ("authorized_operations", Types.Int32),
                _TAGS,
            ),
        ),
        _TAGS,
    )


class _Request(Api.RequestStruct):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 12
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = MetadataWithIds
    SCHEMA = Types.Schema(
        ("topics", Types.CompactArray(("topic_id", Id), ("name", _NAME), _TAGS)),
        ("allow_auto_topic_creation", Types.Boolean),
        ("include_authorized_operations", Types.Boolean),
        _TAGS,
    )


class LookAt(Api.Request[_Request]):  # type: ignore[misc]
    """Asks for the partitions and the ids of these topics; creates none. aiokafka's own request knows no ids."""

    API_KEY = 3

    def __init__(self, names: list[str]) -> None:
        self._names = names

    def build(self, request_struct_class: Any) -> Any:
        """The request, in the one version that there is of it."""
        return request_struct_class([(NO_ID, name, {}) for name in self._names], False, False, {})


class TopicIds:
    """The id of each topic, as the brokers told it last."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[bytes, bytes]] = {}
        """With the one before it: a broker that is behind may tell that again."""

    def of(self, name: str) -> bytes | None:
        """None where it was not told, or the topic is gone."""
        known = self._known.get(name)
        return None if known is None else known[0]

    def told(self, name: str, topic_id: bytes) -> None:
        """A broker has told this one."""
        known, before = self._known.get(name, (NO_ID, NO_ID))
        if topic_id not in {known, before, NO_ID}:
            self._known[name] = topic_id, known
