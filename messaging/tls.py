"""TLS for adapters: verified unless it is said otherwise, and the options that are alike for every broker."""

from __future__ import annotations

import ssl

from messaging.errors import ConfigurationError


def client_context(
    broker: str,
    *,
    ca: str | None = None,
    cert: str | None = None,
    key: str | None = None,
    check_hostname: bool = True,
) -> ssl.SSLContext:
    """A context for connections to a broker, whose certificate and host name are verified.

    Reads files: call it in a thread where that could take long.

    :param broker: the broker's name and address, for errors
    :param ca: a file of certificate authorities, PEM; without it those of the system are trusted
    :param cert: a file with this program's own certificate, PEM, for brokers that ask for one
    :param key: a file with its key, where that is not in the same file
    :param check_hostname: whether the certificate must be for the host that was asked for; its authority is
        verified in any case
    :raises ConfigurationError: a file cannot be used; the option and the file are named
    """
    if key is not None and cert is None:
        raise ConfigurationError(f"{broker}: the option key is for a certificate: name its file with cert")
    try:
        context = ssl.create_default_context(cafile=ca)
    except OSError as error:
        raise ConfigurationError(
            f"{broker}: ca={ca!r} cannot be used: {error}. Name a file of certificate authorities, PEM"
        ) from error
    if cert is not None:
        try:
            context.load_cert_chain(cert, key)
        except OSError as error:
            files = f"cert={cert!r}" + (f" and key={key!r}" if key is not None else "")
            raise ConfigurationError(
                f"{broker}: {files} cannot be used: {error}. Name a certificate and its key, PEM"
            ) from error
    context.check_hostname = check_hostname
    return context
