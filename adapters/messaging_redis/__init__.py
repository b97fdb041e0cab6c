"""The Redis Streams adapter of `messaging`."""

from messaging_redis.adapter import RedisAdapter
from messaging_redis.store import RedisStore

__all__ = ["RedisAdapter", "RedisStore"]
