"""ElasticMQ, SQS with AWS' limits and without SNS: how it is started and asked."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from messaging_contracts.brokers import java, web
from messaging_contracts.brokers.broker import Command, Container, NotReady, Options
from messaging_contracts.brokers.process import LOOPBACK
from messaging_contracts.brokers.sqs import CREDENTIALS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

VERSION = "1.6.12"
SERVER = f"elasticmq-{VERSION}"
ARTIFACTS = (f"org.elasticmq:elasticmq-server_2.13:{VERSION}",)

KEPT = {"messages-storage.enabled": "true"}

CONFIGURATION = """\
include classpath("application.conf")
node-address {{ protocol = http, host = "{host}", port = {port}, context-path = "" }}
rest-sqs {{ enabled = true, bind-hostname = "{host}", bind-port = {port}, sqs-limits = strict }}
rest-stats.enabled = false
queues-storage {{ enabled = true, path = {queues} }}
messages-storage {{ enabled = false, uri = {messages} }}
"""


class ElasticMQ:
    """It keeps AWS' limits and blocks a FIFO group as AWS does, which LocalStack does not.

    Configuration of one's own are lines of its configuration file. With `KEPT` messages outlive a restart too; now and
    then it does not answer a send for ten seconds then (`Ask timed out on ... MessageUpdated` in its log).
    """

    name = "elasticmq"
    package = java.PACKAGES
    client_environment: Mapping[str, str] = CREDENTIALS

    def program(self) -> Path | None:
        return java.java(SERVER)

    def url(self, host: str, port: int, options: Options) -> str:
        return f"sqs://elasticmq?endpoint_url=http://{host}:{port}&fanout=client"

    def prepare(self, program: Path, home: Path, port: int, options: Options) -> Sequence[Command]:
        class_path = java.class_path(SERVER, ARTIFACTS)
        file = home / "elasticmq.conf"
        text = CONFIGURATION.format(
            host=LOOPBACK,
            port=port,
            queues=json.dumps(str(home / "queues.conf")),
            messages=json.dumps(f"jdbc:h2:{home / 'messages'};WRITE_DELAY=0"),
        )
        file.write_text(text + "".join(f"{key} = {value}\n" for key, value in options.config.items()))
        main = ["-cp", class_path, "org.elasticmq.server.Main"]
        return [Command([str(program), "-Xmx256m", *java.FLAGS, f"-Dconfig.file={file}", *main])]

    def container(self, options: Options, host: str, port: int) -> Container | None:
        if options.config:
            return None
        return Container(
            image=os.environ.get(
                "MESSAGING_TEST_ELASTICMQ_IMAGE", f"softwaremill/elasticmq-native:{VERSION}"
            ),
            port=9324,
            command=os.environ.get("MESSAGING_TEST_ELASTICMQ_COMMAND", ""),
        )

    def version(self, url: str, timeout: float) -> str:
        """ElasticMQ does not tell its version: it is taken to be the one that is started here."""
        status, _ = web.get(url, "/health", timeout)
        if status != 200:
            raise NotReady(f"its health is answered with status {status}")
        return VERSION
