"""What `import messaging` costs a program that starts."""

from __future__ import annotations

import asyncio
import os
import sys
import time

from benchmarks.measure import Incomplete, Measured
from benchmarks.path import OURS, Contender, Path

BROKER_LIBRARIES = ("redis", "aiormq", "pamqp", "aio_pika", "aiokafka", "boto3", "botocore")


async def messaging(_: str, times: int) -> Measured:
    return await _imported(_checked("import messaging"), times)


async def pydantic(_: str, times: int) -> Measured:
    return await _imported("import pydantic", times)


async def messaging_used(_: str, times: int) -> Measured:
    return await _imported(_checked("from messaging import App, Topic, connect"), times)


async def pydantic_used(_: str, times: int) -> Measured:
    return await _imported("from pydantic import BaseModel, TypeAdapter", times)


def _checked(program: str) -> str:
    return f"import sys; {program}; sys.exit(any(name in sys.modules for name in {BROKER_LIBRARIES!r}))"


async def _imported(program: str, times: int) -> Measured:
    """Whole processes, so that nothing is imported twice; the interpreter's own start is part of both.

    Both from bytecode: what was installed has it, a working copy writes it with the round that is not counted.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    for _ in range(times):
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, env=environment)
        if await process.wait():
            raise Incomplete("the import failed, or loaded the library of a broker")
    return Measured(times / (time.perf_counter() - start), times)


PATHS = (
    Path(
        "import",
        "memory",
        "processes that import the package, one after the other; both load most of it with its first use",
        10,
        (Contender(OURS, messaging), Contender("import pydantic", pydantic, target=1 / 1.3)),
    ),
    Path(
        "import and use",
        "memory",
        "processes that import what a program needs: `App, Topic, connect`, and `BaseModel, TypeAdapter`",
        10,
        (Contender(OURS, messaging_used), Contender("pydantic", pydantic_used, target=1 / 1.3)),
    ),
)
