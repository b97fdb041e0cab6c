"""The capability table: what each broker promises, from what the cases of a run have shown."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Literal, TypeAlias

from messaging import Capabilities, connect
from messaging_contracts.case import CAPABILITIES, PROMISES, Case, all_cases
from messaging_contracts.runner import run
from messaging_contracts.targets import target_of

Shown: TypeAlias = Literal["kept", "refused", "broken"]

logger = logging.getLogger("messaging_contracts.capabilities")

INTRODUCTION = """\
Written by `python -m messaging_contracts capabilities` from the outcomes of the contract suite: {cases} cases on each
broker. The number of cases that showed a promise stands behind it. `native` is what the broker does itself, `emulated`
what the adapter does with what the broker has. What is unsupported was seen to raise `UnsupportedCapability`."""
PARALLEL = 3
"""Cases at once: most of their time is waiting."""


@dataclass(slots=True)
class Findings:
    """What a run has shown of one broker."""

    capabilities: Capabilities
    server: str = ""
    """Its version, as the server tells it."""
    shown: dict[str, Shown] = field(default_factory=dict[str, Shown])

    @property
    def title(self) -> str:
        return " ".join(filter(None, (self.capabilities.broker, self.server or self.capabilities.version)))

    def verdict(self, promise: str, of: Sequence[Case]) -> str:
        """The level at which the cases have shown the promise, and how many of them."""
        shown = [self.shown[case.name] for case in of if case.promise == promise]
        if "broken" in shown:
            return f"**broken** ({shown.count('broken')} of {len(shown)})"
        if "refused" in shown:
            return "unsupported, refused at start"
        level = getattr(self.capabilities, promise).level if promise in CAPABILITIES else "kept"
        return f"{level} ({len(shown)})"


async def investigate(url: str, server: str = "") -> Findings:
    """Run every case on this broker."""
    target = target_of(url)
    async with connect(target.url) as bus:
        findings = Findings(bus.capabilities, server)
    gate = asyncio.Semaphore(PARALLEL)

    async def one(case: Case) -> None:
        async with gate:
            try:
                findings.shown[case.name] = await run(case, target)
            except Exception as error:
                findings.shown[case.name] = "broken"
                logger.warning("%s on %s: %s: %s", case.name, findings.title, type(error).__name__, error)

    async with asyncio.TaskGroup() as running:
        for case in all_cases():
            running.create_task(one(case))
    return findings


async def report(servers: Mapping[str, str]) -> tuple[str, bool]:
    """The document for these brokers, versions by URL, and whether all promises are kept."""
    findings = [await investigate(url, version) for url, version in servers.items()]
    broken = any(shown == "broken" for one in findings for shown in one.shown.values())
    return document(findings), not broken


def document(findings: Sequence[Findings]) -> str:
    """Markdown; the same findings give the same text."""
    of = all_cases()
    parts = [
        "# Capabilities",
        "",
        INTRODUCTION.format(cases=len(of)),
        "",
        *_table(
            ["", *(one.title for one in findings)],
            [[text, *(one.verdict(promise, of) for one in findings)] for promise, text in PROMISES.items()],
        ),
        "",
        "## Bounds",
        "",
        *_table(["", *(one.title for one in findings)], _bounds([one.capabilities for one in findings])),
        "",
        "## How each promise is kept",
        "",
        *_reasons([one.capabilities for one in findings]),
        "",
        "## What was shown",
        "",
        *_evidence(of),
    ]
    return "\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _bounds(all_of: Sequence[Capabilities]) -> list[list[str]]:
    return [
        [
            "longest delay of an unordered retry, and of a publish",
            *(_seconds(one.max_delay) for one in all_of),
        ],
        ["what was delayed is late by at most", *(_seconds(one.lateness) for one in all_of)],
        ["longest delay of an ordered retry", *(_seconds(one.max_hold) for one in all_of)],
        ["largest message", *(_bytes(one.max_message_bytes) for one in all_of)],
        ["a confirmed message survives", *(_durability(one.durability) for one in all_of)],
        ["a late settlement is refused", *("yes" if one.fenced else "no" for one in all_of)],
    ]


def _seconds(bound: float) -> str:
    return f"{bound:g} s" if isfinite(bound) else "no bound"


def _bytes(bound: int) -> str:
    for size, unit in ((1024**2, "MiB"), (1024, "KiB")):
        if bound % size == 0:
            return f"{bound // size} {unit}"
    return f"{bound} bytes"


def _durability(survives: str) -> str:
    known: Mapping[str, str] = {"none": "nothing: it lives in the process"}
    return known.get(survives, survives)


def _reasons(all_of: Sequence[Capabilities]) -> list[str]:
    lines: list[str] = []
    for promise, text in CAPABILITIES.items():
        said = [(one.broker, getattr(one, promise)) for one in all_of]
        lines += [f"- {text}."]
        lines += [f"  - {broker}: {capability.reason}." for broker, capability in said if capability.reason]
    return lines


def _evidence(of: Sequence[Case]) -> list[str]:
    lines: list[str] = []
    for promise, text in PROMISES.items():
        lines += [f"### {text}", ""]
        lines += [
            f"- {case.name.replace('_', ' ')}: {case.summary}" for case in of if case.promise == promise
        ]
        lines += [""]
    return lines[:-1]
