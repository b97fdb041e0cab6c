"""What `import messaging` costs a program that starts."""

from __future__ import annotations

import asyncio
import sys
import time

from benchmarks.measure import Incomplete, Measured
from benchmarks.path import OURS, Contender, Path

BROKER_LIBRARIES = ("redis", "aiormq", "pamqp", "aio_pika", "aiokafka", "boto3", "botocore")


async def messaging(_: str, times: int) -> Measured:
    found = f"[name for name in sys.modules if name in {BROKER_LIBRARIES!r}]"
    return await _imported(f"import sys, messaging; sys.exit(bool({found}))", times)


async def pydantic(_: str, times: int) -> Measured:
    return await _imported("from pydantic import BaseModel, TypeAdapter", times)


async def _imported(program: str, times: int) -> Measured:
    """Whole processes, so that nothing is imported twice; the interpreter's own start is part of both."""
    start = time.perf_counter()
    for _ in range(times):
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", program)
        if await process.wait():
            raise Incomplete("the import failed, or loaded the library of a broker")
    return Measured(times / (time.perf_counter() - start), times)


PATHS = (
    Path(
        "import",
        "memory",
        "processes that import it, one after the other",
        10,
        (Contender(OURS, messaging), Contender("pydantic", pydantic, target=1 / 1.3)),
    ),
)
