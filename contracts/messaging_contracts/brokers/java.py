"""Servers written in Java: their libraries come from Maven Central, each with the sum that is written down here."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from messaging_contracts.brokers.fetched import check_sums, fetched, is_fetched, run

if TYPE_CHECKING:
    from collections.abc import Sequence

PACKAGES = "default-jre-headless maven"
COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
# Quick to start and small: a broker for tests runs for minutes, beside others, on two cores.
FLAGS = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")

PROJECT = """\
<project>
  <modelVersion>4.0.0</modelVersion>
  <groupId>messaging</groupId>
  <artifactId>server</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
{dependencies}
  </dependencies>
</project>
"""
DEPENDENCY = (
    "    <dependency><groupId>{}</groupId><artifactId>{}</artifactId><version>{}</version></dependency>"
)


def java(server: str) -> Path | None:
    """The Java runtime, if it is there, and with it Maven or the server that Maven would fetch."""
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=f"{home}/bin") if home else None
    found = found or shutil.which("java")
    usable = found is not None and (is_fetched(server) or shutil.which("mvn") is not None)
    return Path(found) if found is not None and usable else None


def class_path(server: str, artifacts: Sequence[str]) -> str:
    """The class path of a server, made of `group:artifact:version` and all that these depend on.

    :raises BrokerUnavailable: Maven could not fetch it, or what came is not what `<server>.sha256` beside this
    file tells
    """
    return str(fetched(server, partial(_copy, server, artifacts)) / "*")


def _copy(server: str, artifacts: Sequence[str], folder: Path) -> None:
    dependencies = "\n".join(DEPENDENCY.format(*artifact.split(":")) for artifact in artifacts)
    project = folder / "pom.xml"
    project.write_text(PROJECT.format(dependencies=dependencies))
    options = ("--batch-mode", "--quiet", "--strict-checksums", f"--file={project}")
    command = ["mvn", *options, COPY, f"-DoutputDirectory={folder}", "-DincludeScope=runtime"]
    run(command, f"Maven's download of {server}")
    check_sums(server, folder, Path(__file__).with_name(f"{server}.sha256"))
