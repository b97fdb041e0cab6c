"""A third party's adapter is a package, an entry point and the suite, as the page about adapters says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "adapters.md").read_text()
ENTRY_POINT = re.search(r'^\[project.entry-points."(.+)"\]\nacme = "(.+)"$', PAGE, re.MULTILINE)
SUITE = dict(re.findall(r"^`(\w+\.py)`\n\n```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))

# The memory broker stands in for the third party's.
ADAPTER = """
from messaging_memory import MemoryAdapter


class AcmeAdapter(MemoryAdapter):
    name = "acme"

    @classmethod
    def from_url(cls, url, context):
        return super().from_url(url.replace("acme://", "memory://"), context)
"""


@pytest.fixture
def acme(tmp_path: Path) -> Path:
    assert ENTRY_POINT is not None
    group, value = ENTRY_POINT.groups()
    metadata = tmp_path / "messaging_acme-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: messaging-acme\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{group}]\nacme = {value}\n")
    (tmp_path / "messaging_acme.py").write_text(ADAPTER)
    for name, text in SUITE.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_suite_runs_on_an_adapter_that_is_not_ours(python, acme):
    run = python(
        ["-m", "pytest", "-q", "-p", "no:cacheprovider", "test_acme.py", "-k", "retry or redrive"],
        cwd=acme,
        environment={"PYTHONPATH": str(acme)},
    )

    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"^\d+ passed", run.stdout, re.MULTILINE)


def test_the_scheme_of_an_adapter_that_is_not_ours_is_listed(python, acme):
    run = python(
        ["-c", "from messaging import connect; connect('acne://localhost')"],
        cwd=acme,
        environment={"PYTHONPATH": str(acme)},
    )

    assert "acme://" in run.stderr


def test_an_adapter_for_another_version_of_the_spi_is_refused(python, acme):
    with (acme / "messaging_acme.py").open("a") as file:
        file.write("    api_version = 99\n")

    run = python(
        ["-c", "from messaging import connect; connect('acme://localhost')"],
        cwd=acme,
        environment={"PYTHONPATH": str(acme)},
    )

    assert "version 99 of the SPI" in run.stderr
