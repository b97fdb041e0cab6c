"""SQS and SNS of LocalStack: how it is started and asked."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from messaging_contracts.brokers import web
from messaging_contracts.brokers.broker import Command, Container, NotReady, Options
from messaging_contracts.brokers.fetched import fetched, run
from messaging_contracts.brokers.process import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

VERSION = "4.14.0"
SERVER = f"localstack-{VERSION}"
PYTHON = "3.13"
REQUIREMENTS = Path(__file__).with_name("localstack.txt")
# The services, with a call of each that changes nothing.
CALLS = {
    "sqs": ("ListQueues", "2012-11-05"),
    "sns": ("ListTopics", "2010-03-31"),
    "sts": ("GetCallerIdentity", "2011-06-15"),
}
SERVICES = tuple(CALLS)
# LocalStack takes any; botocore takes them from the environment, and asks no cloud's metadata for them.
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_EC2_METADATA_DISABLED": "true",
}

# LocalStack ignores the host of an IPv4 address to listen on and would offer its services to the network.
LAUNCH = """
from functools import partial
from twisted.internet import endpoints
endpoints.TCP4ServerEndpoint = partial(endpoints.TCP4ServerEndpoint, interface="127.0.0.1")
from localstack.runtime.main import main
main()
"""


class SQS:
    """LocalStack, in an environment of its own on the Python that it needs. It keeps nothing: after `restart` it
    is empty.

    Configuration of one's own are variables of its environment.
    """

    name = "sqs"
    package = f"python{PYTHON} python{PYTHON}-venv"
    client_environment: Mapping[str, str] = CREDENTIALS

    def program(self) -> Path | None:
        found = shutil.which(f"python{PYTHON}")
        # A shim of pyenv is there for every version, and fails where another one is chosen.
        if found is not None and Path(found).parent.name != "shims":
            return Path(found)
        return _of_pyenv()

    def url(self, host: str, port: int, options: Options) -> str:
        return f"sqs://us-east-1?endpoint_url=http://{host}:{port}"

    def prepare(self, program: Path, home: Path, port: int, options: Options) -> Sequence[Command]:
        python = fetched(SERVER, partial(_install, program)) / "bin" / "python"
        environment = {
            **_settings(f"{LOOPBACK}:{port}"),
            "GATEWAY_LISTEN": f"{LOOPBACK}:{port}",
            "FILESYSTEM_ROOT": str(home),
            "OVERRIDE_IN_DOCKER": "0",  # in a container of another kind it would write to /var/lib
            **options.config,
        }
        return [Command([str(python), "-c", LAUNCH], environment)]

    def container(self, options: Options, host: str, port: int) -> Container | None:
        return Container(
            image=os.environ.get("MESSAGING_TEST_SQS_IMAGE", f"localstack/localstack:{VERSION}"),
            port=4566,
            command=os.environ.get("MESSAGING_TEST_SQS_COMMAND", ""),
            environment={**_settings(f"{host}:{port}"), **options.config},
        )

    def version(self, url: str, timeout: float) -> str:
        """LocalStack's version; "unknown" of any other server, AWS for one, that answers."""
        status, page = web.get(url, "/_localstack/health", timeout)
        if status >= 500:
            raise NotReady(f"its health is answered with status {status}")
        try:
            health = json.loads(page)
            states = [health["services"].get(service) for service in SERVICES]
            version = str(health["version"])
        except (ValueError, TypeError, KeyError, AttributeError):
            return "unknown"
        if "running" not in states[0] or "running" not in states[1]:
            raise NotReady(f"SQS is {states[0]}, SNS is {states[1]}")
        for service, (action, of) in CALLS.items():
            _call(url, service, f"Action={action}&Version={of}", timeout)
        return version


def _call(url: str, service: str, query: str, timeout: float) -> None:
    """A service that runs loads the rest when it is first called, which takes seconds."""
    scope = f"Credential=test/20260101/us-east-1/{service}/aws4_request"
    signed = {"Authorization": f"AWS4-HMAC-SHA256 {scope}, SignedHeaders=host, Signature=none"}
    status, _ = web.get(url, f"/?{query}", timeout, signed)
    if status != 200:
        raise NotReady(f"a call of {service} is answered with status {status}")


def _settings(address: str) -> dict[str, str]:
    return {
        "SERVICES": ",".join(SERVICES),
        "EAGER_SERVICE_LOADING": "1",
        "LOCALSTACK_HOST": address,
        "SQS_ENDPOINT_STRATEGY": "path",  # the other ones make names that no resolver here knows
        "SKIP_SSL_CERT_DOWNLOAD": "1",
        "DISABLE_EVENTS": "1",
        "DNS_ADDRESS": "0",
    }


def _of_pyenv() -> Path | None:
    """The newest Python 3.13 that pyenv has."""
    pyenv = shutil.which("pyenv")
    if pyenv is None:
        return None
    asked = subprocess.run(
        [pyenv, "root"], capture_output=True, text=True, check=False, timeout=30, stdin=subprocess.DEVNULL
    )
    versions = Path(asked.stdout.strip() or ".") / "versions"
    found = sorted(versions.glob(f"{PYTHON}.*/bin/python{PYTHON}"), key=_patch)
    return found[-1] if found else None


def _patch(program: Path) -> int:
    digits = program.parents[1].name.removeprefix(f"{PYTHON}.")
    return int(digits) if digits.isdecimal() else -1


def _install(python: Path, folder: Path) -> None:
    """LocalStack with the versions that fitted it when it was new: with today's it does not start."""
    run([str(python), "-m", "venv", str(folder)], f"the environment for {SERVER}")
    pip = [
        str(folder / "bin" / "python"),
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--quiet",
        "--no-input",
    ]
    run(
        [*pip, "install", "--no-deps", "--require-hashes", "--requirement", str(REQUIREMENTS)],
        f"the installation of {SERVER}",
    )
