import asyncio
import importlib
import os
import subprocess
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from messaging import (
    App,
    ConfigurationError,
    DeadLetters,
    InvalidMessage,
    Message,
    PublishManyError,
    Reject,
    RetryPolicy,
    Topic,
    connect,
)
from messaging.adapter import Outgoing, TopicSpec
from messaging.cli import dead_letters, generations, main, parser

APP = """
from messaging import App, RetryPolicy, Topic, fixed

orders = Topic("orders", dict, ordered=True, partitions=4)
app = App("billing", retry=RetryPolicy(4, fixed(2)))
nested = {"app": app}

@app.subscribe(orders, concurrency=3)
def charge(order: dict) -> None: ...

@app.subscribe(orders, group="audit", timeout=9)
def audit(order: dict) -> None: ...
"""


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in os.environ:
        if variable.startswith("MESSAGING_"):
            monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())


@pytest.fixture
def program(tmp_path: Path) -> str:
    """The name of a module with an app, never imported before."""
    name = f"program_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(APP)
    return name


def table(output: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in output.splitlines() if line.strip()}


def test_config_shows_every_value_and_where_it_comes_from(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("messaging.toml").write_text('[topics.orders]\npartitions = 4\n[broker.redis]\npassword = "s3cret"')
    monkeypatch.setenv("MESSAGING_URL", "redis://:s3cret@host")

    assert main(["config"]) == 0

    shown = capsys.readouterr().out
    rows = table(shown)
    assert rows["url"] == ['"redis://:***@host"', "MESSAGING_URL", "(environment)"]
    assert rows["topics.orders.partitions"] == ["4", "messaging.toml"]
    assert rows["broker.redis.password"] == ['"***"', "messaging.toml"]
    assert rows["drain_timeout"] == ["30.0", "default"]
    assert rows["store"] == ["(not", "set)", "default"]
    assert "s3cret" not in shown


def test_config_of_an_app_shows_its_topics_and_subscriptions(
    program: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("messaging.toml").write_text('[subscriptions."orders/billing"]\nconcurrency = 5\nretry.attempts = 6')

    assert main(["config", f"{program}:app"]) == 0

    rows = table(capsys.readouterr().out)
    assert rows["topics.orders.partitions"] == ["4", "code"]
    assert rows["topics.orders.ordered"] == ["true", "code"]
    assert rows['subscriptions."orders/billing".concurrency'] == ["5", "messaging.toml"]
    assert rows['subscriptions."orders/billing".retry.attempts'] == ["6", "messaging.toml"]
    assert rows['subscriptions."orders/billing".retry.delay'] == ["2.0", "code"]
    assert rows['subscriptions."orders/audit".timeout'] == ["9.0", "code"]


def test_config_of_an_app_notes_what_the_settings_misspell(
    program: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("messaging.toml").write_text(
        '[topics.ordres]\npartitions = 4\n[subscriptions."orders/biling"]\nconcurrency = 5\n'
        "[topics.orders]\npartitions = 4"
    )

    assert main(["config", f"{program}:app"]) == 0

    assert capsys.readouterr().err.splitlines() == [
        f"note: {name} is of nothing in {program}:app: of another program, or misspelt"
        for name in ("topics.ordres", 'subscriptions."orders/biling"')
    ]


def test_config_shows_the_routes_and_the_broker_of_each_topic(
    monkeypatch: pytest.MonkeyPatch, program: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("messaging.toml").write_text(
        'url = "memory://jobs"\n[routes]\n"ord*" = "events"\n"clicks" = "memory://x"'
    )
    monkeypatch.setenv("MESSAGING__BROKER__EVENTS__URL", "redis://me:s3cret@events")

    assert main(["config", f"{program}:app"]) == 0

    shown = capsys.readouterr().out
    rows = table(shown)
    assert rows['routes."ord*"'] == ['"events"', "messaging.toml"]
    assert rows["broker.events.url"] == [
        '"redis://me:***@events"',
        "MESSAGING__BROKER__EVENTS__URL",
        "(environment)",
    ]
    assert rows["orders"] == ["->", "events", 'routes."ord*",', "messaging.toml"]
    assert "s3cret" not in shown


def test_settings_for_all_override_the_app_but_not_what_a_subscription_says(
    program: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("messaging.toml").write_text(
        "[app]\nconcurrency = 50\nprefetch = 60\ntimeout = 70\nretry.attempts = 8"
    )

    assert main(["config", f"{program}:app"]) == 0

    rows = table(capsys.readouterr().out)
    assert rows['subscriptions."orders/billing".concurrency'] == ["3", "code"]
    assert rows['subscriptions."orders/billing".prefetch'] == ["60", "messaging.toml"]
    assert rows['subscriptions."orders/billing".timeout'] == ["70.0", "messaging.toml"]
    assert rows['subscriptions."orders/billing".retry.attempts'] == ["8", "messaging.toml"]
    assert rows['subscriptions."orders/billing".retry.delay'] == ["2.0", "code"]
    assert rows['subscriptions."orders/audit".concurrency'] == ["50", "messaging.toml"]
    assert rows['subscriptions."orders/audit".timeout'] == ["9.0", "code"]


def test_an_error_is_one_line_and_exit_code_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MESSAGING__TIMEOUT", "1")

    assert main(["config"]) == 1

    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("ConfigurationError: unknown variable MESSAGING__TIMEOUT")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("app", "module:attribute"),
        ("absent_module_x:app", "there is no module absent_module_x"),
        ("os:path", "os:path is no messaging.App but module"),
        ("os:nothing.at.all", "module os has no nothing.at.all"),
    ],
)
def test_what_is_no_app_is_named(name: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", name]) == 1

    assert said in capsys.readouterr().err


def test_a_wrong_call_shows_how_to_call(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main([])

    assert raised.value.code == 2
    assert "config" in capsys.readouterr().err


def test_the_module_runs_as_a_command(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MESSAGING_")}
    environment["MESSAGING_URL"] = "memory://shown"

    done = subprocess.run(
        [sys.executable, "-m", "messaging", "config"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env=environment,
        cwd=tmp_path,
    )

    assert table(done.stdout)["url"] == ['"memory://shown"', "MESSAGING_URL", "(environment)"]


@pytest.fixture
async def broker() -> AsyncGenerator[str]:
    """A broker where the group `billing` gave up the messages m0, m1 and m2."""
    orders = Topic("orders", dict)
    app = App("billing", retry=RetryPolicy(1))

    @app.subscribe(orders)
    async def refuse(order: dict) -> Reject:
        return Reject("no customer")

    bus = connect("memory://cli")
    async with bus:
        async with app.running(bus):
            for number in range(3):
                await bus.publish(orders, {}, id=f"m{number}")
            async with asyncio.timeout(10):
                while await bus.dead_letters(orders, group="billing").count() < 3:
                    await asyncio.sleep(0)
        yield "memory://cli"


async def dead(url: str, *arguments: str) -> None:
    verb, *options = arguments
    call = ["dead-letters", verb, "--url", url, "--topic", "orders", "--group", "billing", *options]
    await dead_letters.perform(parser().parse_args(call))


async def test_dead_letters_are_listed_oldest_first(broker: str, capsys: pytest.CaptureFixture[str]) -> None:
    await dead(broker, "list", "--limit", "2")

    first, second, total = capsys.readouterr().out.splitlines()
    assert first.startswith("m0  ")
    assert "rejected  attempts=1  no customer" in first
    assert second.startswith("m1  ")
    assert total == "2 of 3"


UNORDERED = """
from messaging import App, Reject, Topic

orders = Topic("orders", str, key=lambda text: text, ordered=True, partitions=2)
app = App("shop")


@app.subscribe(orders, group="billing", ordered=False)
async def refuse(order: str) -> Reject:
    return Reject("no customer")
"""

FORGED = "bad\r\nERROR forged line\x1b[2J"


async def test_a_message_or_its_error_can_forge_no_line_of_a_list_or_a_log(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    orders = Topic("orders", dict)
    app = App("billing", retry=None)

    @app.subscribe(orders)
    async def fail(order: dict) -> None:
        raise ValueError(FORGED)

    async with connect("memory://forged") as bus:
        spec = TopicSpec("orders", partitions=8)
        foreign = Message(id=FORGED, topic="orders", body=b"{}", content_type="application/json")
        async with app.running(bus), asyncio.timeout(10):
            await bus.adapter.publish([Outgoing(spec, foreign, 0)])
            while await bus.dead_letters(orders, group="billing").count() < 1:
                await asyncio.sleep(0)
        await dead("memory://forged", "list")

    escaped = FORGED.encode("unicode_escape").decode()
    line, _ = capsys.readouterr().out.splitlines()
    assert line.count(escaped) == 2
    (logged,) = [record.getMessage() for record in caplog.records if "dead letter" in record.getMessage()]
    assert logged.isprintable()
    assert logged.count(escaped) == 2


async def test_a_dry_run_changes_nothing(broker: str, capsys: pytest.CaptureFixture[str]) -> None:
    await dead(broker, "redrive", "--all", "--dry-run")
    await dead(broker, "purge", "--all", "--dry-run")
    await dead(broker, "purge", "--id", "m1", "--dry-run")
    await dead(broker, "list")

    shown = capsys.readouterr().out.splitlines()
    assert shown[:3] == ["would redrive 3", "would purge 3", "would purge 1"]
    assert shown[-1] == "3 of 3"


async def test_what_is_named_is_redriven_or_purged(broker: str, capsys: pytest.CaptureFixture[str]) -> None:
    await dead(broker, "redrive", "--id", "m0")
    await dead(broker, "purge", "--id", "m1")
    await dead(broker, "list")

    shown = capsys.readouterr().out.splitlines()
    assert shown[:2] == ["redrove 1", "purged 1"]
    assert shown[2].startswith("m2  ")
    assert shown[3] == "1 of 1"


@pytest.mark.parametrize(
    ("call", "done", "left"),
    [
        (["redrive"], "redrove 1", "2 of 2"),
        (["redrive", "--dry-run"], "would redrive 1", "3 of 3"),
        (["purge"], "purged 1", "2 of 2"),
        (["purge", "--dry-run"], "would purge 1", "3 of 3"),
    ],
)
async def test_an_id_that_is_not_there_is_told_when_the_others_are_done(
    broker: str, call: list[str], done: str, left: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(
        ConfigurationError, match=r"group billing of topic orders has no dead letter 'mX', 'mY'$"
    ):
        await dead(broker, *call, "--id", "mX", "--id", "m1", "--id", "mY")
    await dead(broker, "list")

    shown = capsys.readouterr().out.splitlines()
    assert (shown[0], shown[-1]) == (done, left)


async def test_an_id_that_is_not_there_is_told_beside_a_letter_that_is_refused(
    broker: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refusal = InvalidMessage("cut off")
    monkeypatch.setattr(DeadLetters, "_refusal", lambda *_: refusal)

    with pytest.raises(PublishManyError, match="cut off"):
        await dead(broker, "redrive", "--id", "mX", "--id", "m1")

    assert "no dead letter 'mX'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ([], "one of the arguments --id --all is required"),
        (["--all", "--id", "m1"], "argument --id: not allowed with argument --all"),
    ],
)
def test_redrive_and_purge_want_to_be_told_which(
    choice: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in ("redrive", "purge"):
        call = ["dead-letters", verb, "--url", "memory://", "--topic", "a", "--group", "b", *choice]
        with pytest.raises(SystemExit) as raised:
            main(call)
        assert raised.value.code == 2
        assert said in capsys.readouterr().err


def test_a_topic_is_described_by_an_app_and_verified(
    program: str, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["dead-letters", "list", "--url", "memory://", "--group", "billing", "--app", f"{program}:app"]

    assert main([*call, "--topic", "orders"]) == 1
    assert "TopicNotFound" in capsys.readouterr().err
    assert main([*call, "--topic", "others"]) == 1
    assert "does not subscribe to others" in capsys.readouterr().err


async def test_the_dead_letters_of_a_group_without_its_topics_order_are_found_by_its_app(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "unordered.py").write_text(UNORDERED)
    monkeypatch.syspath_prepend(tmp_path)
    program = importlib.import_module("unordered")
    url = "memory://unordered"
    async with connect(url) as bus:
        async with program.app.running(bus), asyncio.timeout(10):
            for order in ("a", "b"):
                await bus.publish(program.orders, order, id=order)
            while await bus.dead_letters(program.orders, group="billing").count() < 2:
                await asyncio.sleep(0)

        app = ("--app", "unordered:app")
        await dead(url, "list", *app)
        await dead(url, "list")
        await dead(url, "redrive", "--id", "a", *app)
        await dead(url, "purge", "--all")

    shown = capsys.readouterr().out.splitlines()
    assert shown[2:3] + shown[5:] == ["2 of 2", "2 of 2", "redrove 1", "purged 1"]


async def test_an_ordered_topic_needs_no_app_to_describe_it(capsys: pytest.CaptureFixture[str]) -> None:
    url = "memory://undescribed"
    orders = Topic("orders", str, key=lambda text: text, ordered=True, partitions=3)
    app = App("billing", retry=RetryPolicy(1))

    @app.subscribe(orders)
    async def refuse(order: str) -> Reject:
        return Reject("no")

    async with connect(url) as bus:
        async with app.running(bus), asyncio.timeout(10):
            await bus.publish(orders, "x", id="x")
            while await bus.dead_letters(orders, group="billing").count() < 1:
                await asyncio.sleep(0)
        for call in (["list"], ["redrive", "--all"]):
            await dead(url, *call)

    assert capsys.readouterr().out.splitlines()[1:] == ["1 of 1", "redrove 1"]


def test_a_limit_that_shows_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for limit in ("0", "-1", "x"):
        with pytest.raises(SystemExit):
            main(["dead-letters", "list", "--topic", "a", "--group", "b", "--limit", limit])
        assert f"--limit: '{limit}' is no number above 0" in capsys.readouterr().err


async def test_a_topic_is_changed_and_shown_by_command(capsys: pytest.CaptureFixture[str]) -> None:
    url = "memory://changed"
    orders = Topic("orders", str, key=lambda text: text, ordered=True, partitions=2)
    begin = [
        "generations",
        "begin",
        "--url",
        url,
        "--topic",
        "orders",
        "--partitions",
        "5",
        "--grace",
        "0.01",
    ]
    async with connect(url) as bus:
        await bus.declare(orders, groups=["billing"])
        await bus.publish(orders, "a")

        await generations.perform(parser().parse_args(begin))
        await generations.perform(parser().parse_args(begin))

        printed = capsys.readouterr()
        assert "takes 0.01 s, until every program has noticed" in printed.err
        shown = printed.out.splitlines()
        assert shown[: len(shown) // 2] == [
            "generation 1: 2 partitions, ordered=True",
            "  billing: 3 waiting, end marks included; 0 of 2 partitions handled to their end",
            "generation 2: 5 partitions, ordered=True, written",
            "  billing: 0 waiting",
        ]

        await generations.perform(
            parser().parse_args(["generations", "list", "--url", url, "--topic", "orders"])
        )

        assert "generation 2: 5 partitions, ordered=True, written" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["begin", "--topic", "orders", "--partitions", "3"], "Topic orders does not exist"),
        (["list", "--topic", "orders"], "Topic orders does not exist"),
    ],
)
def test_a_change_that_cannot_be_is_told(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generations", *arguments, "--url", "memory://"]) == 1

    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "say what is to change"),
        (["--partitions", "0"], "argument --partitions: '0' is no number above 0"),
        (["--partitions", "many"], "argument --partitions: 'many' is no number above 0"),
    ],
)
def test_a_change_that_is_asked_for_wrongly_is_a_wrong_call(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["generations", "begin", "--topic", "orders", *arguments, "--url", "memory://"])

    assert raised.value.code == 2
    assert said in capsys.readouterr().err
