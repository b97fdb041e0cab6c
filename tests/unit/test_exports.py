import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import messaging
from messaging import MessagingError

FACE = {
    "Ack",
    "App",
    "AuthenticationFailed",
    "Bus",
    "Capabilities",
    "Closed",
    "ConfigurationError",
    "ConnectionFailed",
    "DeadLetter",
    "DeadLetters",
    "DecodeError",
    "Delivery",
    "Endpoint",
    "Handler",
    "Health",
    "IdempotencyConflict",
    "InvalidMessage",
    "LeaseLost",
    "Message",
    "MessageTooLarge",
    "MessagingError",
    "MissingExtra",
    "NoGroup",
    "Outcome",
    "PublishError",
    "PublishManyError",
    "PublishUncertain",
    "Receipt",
    "Reject",
    "Release",
    "RemoteError",
    "RequestTimeout",
    "Retry",
    "RetryPolicy",
    "Settings",
    "Topic",
    "TopicNotFound",
    "UnsupportedCapability",
    "connect",
    "exponential",
    "fixed",
}
BROKER_LIBRARIES = {"redis", "hiredis", "aio_pika", "aiormq", "pamqp", "aiokafka", "aiobotocore", "botocore"}


def loaded_after(code):
    """The top-level modules, and those of ours, that a new process has loaded after the code."""
    program = f"import sys, json\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    return set(json.loads(done.stdout))


def test_the_face_is_what_the_design_lists():
    assert set(messaging.__all__) >= FACE
    assert list(messaging.__all__) == sorted(messaging.__all__)


@pytest.mark.parametrize("name", messaging.__all__)
def test_each_exported_name_is_there(name):
    assert getattr(messaging, name) is not None


def test_nothing_is_public_by_accident():
    modules = {name for name, value in vars(messaging).items() if inspect.ismodule(value)}
    others = {"TYPE_CHECKING", "Any"}
    public = {name for name in vars(messaging) if not name.startswith("_")}

    assert public - modules - others <= set(messaging.__all__)


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'messaging' has no attribute 'Setting'"):
        _ = messaging.Setting  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ImportError):
        from messaging import Conect  # pyright: ignore[reportAttributeAccessIssue]  # noqa: F401


def test_the_names_can_be_listed_before_they_are_used():
    loaded = loaded_after("import messaging; assert set(messaging.__all__) <= set(dir(messaging))")

    assert "messaging.app" not in loaded


def test_a_module_of_ours_is_an_attribute_of_the_package():
    assert "messaging.codec" in loaded_after("import messaging; messaging.codec.register")


def test_a_library_that_is_missing_is_told_as_such(monkeypatch):
    monkeypatch.setitem(sys.modules, "messaging.settings", None)
    monkeypatch.delitem(vars(messaging), "Settings", raising=False)

    with pytest.raises(ModuleNotFoundError, match=r"messaging\.settings"):
        _ = messaging.Settings


def test_every_error_can_be_caught_as_a_messaging_error():
    errors = [
        value
        for name in messaging.__all__
        if inspect.isclass(value := getattr(messaging, name)) and issubclass(value, Exception)
    ]
    outcomes = {messaging.Retry, messaging.Reject}

    assert [error for error in errors if not issubclass(error, MessagingError)] == sorted(
        outcomes, key=lambda one: messaging.__all__.index(one.__name__)
    )
    assert issubclass(messaging.RequestTimeout, TimeoutError)


def test_the_import_loads_no_broker_library_no_adapter_and_no_settings():
    loaded = loaded_after("import messaging")

    assert not loaded & BROKER_LIBRARIES
    assert not [name for name in loaded if name.startswith("messaging_")]
    assert not loaded & {"pydantic_settings", "messaging.settings", "messaging.pull", "messaging.testing"}
    assert "pytest" not in loaded


def test_what_only_publishes_loads_nothing_that_consumes_browses_or_probes():
    loaded = loaded_after("from messaging import App, Topic, connect; connect('memory://')")

    assert not loaded & {
        f"messaging.{name}" for name in ("dispatch", "subscription", "dead_letters", "health")
    }


def test_the_middleware_can_be_listed_before_it_is_used_and_is_loaded_by_name():
    loaded = loaded_after(
        "from messaging import middleware; assert set(middleware.__all__) <= set(dir(middleware)); middleware.retrying"
    )

    assert "messaging.middleware.retry" in loaded
    assert "messaging.middleware.idempotency" not in loaded


def test_an_adapter_is_loaded_when_its_url_is_named_and_no_other():
    loaded = loaded_after("import messaging; messaging.connect('memory://')")

    assert "messaging_memory" in loaded
    assert not loaded & {"messaging_redis", "messaging_rabbitmq", *BROKER_LIBRARIES}


def test_the_settings_are_loaded_with_their_first_use():
    assert "messaging.settings" in loaded_after("import messaging; messaging.Settings")
    assert "messaging.settings" in loaded_after("from messaging import *; Settings")


def test_the_package_says_that_it_is_typed():
    assert (Path(messaging.__file__).parent / "py.typed").is_file()
