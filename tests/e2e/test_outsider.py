"""A service of one's own, whose own top-level packages are called `adapters` and `contracts`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

FILES = {
    "adapters/__init__.py": "",
    "adapters/ledger.py": """
class Ledger:
    def __init__(self) -> None:
        self.shipped: list[str] = []
""",
    "contracts/__init__.py": "",
    "contracts/parcels.py": """
from dataclasses import dataclass

from messaging import Topic


@dataclass(frozen=True)
class ParcelPacked:
    parcel_id: str
    address: str


parcels = Topic("parcels", ParcelPacked)
""",
    "shipping.py": """
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from adapters.ledger import Ledger
from contracts.parcels import ParcelPacked, parcels
from messaging import App, Bus, Reject, RetryPolicy, fixed


@asynccontextmanager
async def resources(_bus: Bus) -> AsyncGenerator[Ledger]:
    yield Ledger()


app = App("shipping", lifespan=resources, retry=RetryPolicy(3, fixed(3600)))
calls: list[str] = []


@app.subscribe(parcels)
async def ship(parcel: ParcelPacked, ledger: Ledger) -> None:
    if not parcel.address:
        raise Reject("no address")
    calls.append(parcel.parcel_id)
    if len(calls) == 1:
        raise ConnectionError("the courier does not answer")
    ledger.shipped.append(parcel.parcel_id)
""",
    "test_shipping.py": """
import time

import adapters
import contracts
import messaging
from adapters.ledger import Ledger
from contracts.parcels import ParcelPacked, parcels
from shipping import app


async def test_a_parcel_is_shipped_by_the_second_attempt_an_hour_later() -> None:
    ledger = Ledger()
    started = time.perf_counter()

    async with app.test(provide=[ledger]) as t:
        await t.publish(parcels, ParcelPacked("p1", "12 Mill Lane"))
        await t.advance(60)
        assert not ledger.shipped
        await t.advance(3600)
        assert ledger.shipped == ["p1"]

    assert time.perf_counter() - started < 60


async def test_a_parcel_without_address_is_a_dead_letter() -> None:
    async with app.test(provide=[Ledger()]) as t:
        await t.publish(parcels, ParcelPacked("p2", ""))
        await t.advance(1)

        assert [letter.reason for letter in t.dead(parcels, group="shipping")] == ["no address"]


def test_the_packages_of_this_service_are_its_own() -> None:
    assert adapters.__file__.startswith(str(HERE))
    assert contracts.__file__.startswith(str(HERE))
    assert not messaging.__file__.startswith(str(HERE))
""",
}


def test_a_service_with_packages_named_like_our_folders_works_and_is_tested(python, tmp_path: Path):
    for name, text in FILES.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text.replace("HERE", repr(str(tmp_path))))

    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\nfilterwarnings = error\n"
    )

    run = python(["-m", "pytest", "-q"], cwd=tmp_path)

    assert run.returncode == 0, run.stdout + run.stderr
    assert "3 passed" in run.stdout
