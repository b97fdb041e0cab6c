"""The paths of every broker."""

from __future__ import annotations

from benchmarks.paths import imports, kafka, memory, rabbitmq, redis, sqs

PATHS = (*imports.PATHS, *memory.PATHS, *redis.PATHS, *rabbitmq.PATHS, *kafka.PATHS, *sqs.PATHS)
