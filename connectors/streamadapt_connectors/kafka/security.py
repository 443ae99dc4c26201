"""Checks the TLS and SASL settings before anything connects, and explains a broker's refusals of
them."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Final

from kafka import errors as kafka_errors

from streamadapt.config.secrets import HIDDEN
from streamadapt.errors import ConfigError

__all__ = ["Security", "SecurityKeys", "check_security", "refusal_of", "tls_context"]

PROTOCOLS: Final = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")


@dataclass(frozen=True, kw_only=True)
class SecurityKeys:
    """TLS and SASL settings, with kafka-python's names; docs/security.md explains which settings a
    broker needs.

    Attributes
    ----------
    security_protocol : {"PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"}
        Whether the connection is encrypted (SSL), and whether the client logs in (SASL).
    ssl_cafile : str
        A PEM file with the certificates of the trusted authorities. Default: those of the system.
    ssl_certfile : str
        A PEM file with the client's certificate.
    ssl_keyfile : str
        A PEM file with the key of the client's certificate.
    ssl_password : str
        The password of an encrypted key; `ssl_password_file` names a file that contains it.
    ssl_crlfile : str
        A PEM file with revoked certificates.
    ssl_ciphers : str
        The allowed ciphers, in OpenSSL's notation.
    ssl_check_hostname : bool
        Whether the certificate must be for the host of the connection.
    ssl_context : ssl.SSLContext
        A context that is created in Python, instead of the files.
    sasl_mechanism : str
        How the client logs in: "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "GSSAPI", "OAUTHBEARER"
        or "AWS_MSK_IAM".
    sasl_plain_username : str
        The user name; `sasl_plain_username_file` names a file that contains it.
    sasl_plain_password : str
        The password; `sasl_plain_password_file` names a file that contains it.
    sasl_kerberos_name : str
        GSSAPI: the whole name of the broker's service.
    sasl_kerberos_service_name : str
        GSSAPI: the service part of that name.
    sasl_kerberos_domain_name : str
        GSSAPI: the host part of that name. Default: the host of the connection.
    sasl_oauth_token_provider : object
        OAUTHBEARER: an object that returns tokens, created in Python.
    """

    security_protocol: str = "PLAINTEXT"
    ssl_cafile: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    ssl_password: str | None = None
    ssl_crlfile: str | None = None
    ssl_ciphers: str | None = None
    ssl_check_hostname: bool = True
    ssl_context: ssl.SSLContext | None = None
    sasl_mechanism: str | None = None
    sasl_plain_username: str | None = None
    sasl_plain_password: str | None = None
    sasl_kerberos_name: str | None = None
    sasl_kerberos_service_name: str = "kafka"
    sasl_kerberos_domain_name: str | None = None
    sasl_oauth_token_provider: object = None


Security = Annotated[Mapping[str, Any], SecurityKeys]
"""The type of a table ``security``; `SecurityKeys` describes its keys."""
SECURITY: Final = frozenset(field.name for field in fields(SecurityKeys))
MECHANISMS: Final = (
    "PLAIN",
    "SCRAM-SHA-256",
    "SCRAM-SHA-512",
    "GSSAPI",
    "OAUTHBEARER",
    "AWS_MSK_IAM",
)
WITH_PASSWORD: Final = MECHANISMS[:3]


def check_security(security: Mapping[str, Any] | None, path: str = "security") -> dict[str, Any]:
    """Return a copy of the TLS and SASL settings, with kafka-python's names.

    Raises
    ------
    ConfigError
        For an unknown name or protocol, for settings that the protocol does not use, such as a
        password without SASL, and for files that cannot be used. Values are not shown, since even
        a misspelt password is a secret.
    """
    given = dict(security or {})
    for name in given:
        if name not in SECURITY:
            expected = (
                f"one of {', '.join(sorted(SECURITY))}; see `streamadapt config source.security`"
            )
            raise ConfigError(f"{path}.{name}", HIDDEN, expected)
    protocol = given.get("security_protocol", "PLAINTEXT")
    if protocol not in PROTOCOLS:
        raise ConfigError(f"{path}.security_protocol", protocol, f"one of {', '.join(PROTOCOLS)}")
    for prefix, of in (("ssl", ("SSL", "SASL_SSL")), ("sasl", ("SASL_PLAINTEXT", "SASL_SSL"))):
        unused = next(
            (name for name in given if name.startswith(f"{prefix}_") and protocol not in of), None
        )
        # Without this check, a forgotten line would mean that nothing is encrypted.
        if unused is not None:
            raise ConfigError(
                f"{path}.security_protocol", protocol, f"{' or '.join(of)}, which {unused} needs"
            )
    if protocol.startswith("SASL"):
        _check_sasl(given, path)
    if protocol.endswith("SSL"):
        tls_context(given, path)
        # With None, OpenSSL would ask for the password of an encrypted key on the terminal.
        given.setdefault("ssl_password", "")
    return given


def _check_sasl(given: Mapping[str, Any], path: str) -> None:
    mechanism = given.get("sasl_mechanism")
    if mechanism not in MECHANISMS:
        raise ConfigError(f"{path}.sasl_mechanism", mechanism, f"one of {', '.join(MECHANISMS)}")
    if mechanism in WITH_PASSWORD:
        for name in ("sasl_plain_username", "sasl_plain_password"):
            value = given.get(name)
            if not isinstance(value, str) or not value:
                raise ConfigError(
                    f"{path}.{name}", None if value is None else HIDDEN, f"a text, for {mechanism}"
                )


def tls_context(given: Mapping[str, Any], path: str = "security") -> ssl.SSLContext:
    """Return the context that kafka-python creates from these settings for each connection.

    Raises
    ------
    ConfigError
        For files that cannot be used.
    """
    made: ssl.SSLContext | None = given.get("ssl_context")
    if made is not None:
        return made
    if given.get("ssl_keyfile") and not given.get("ssl_certfile"):
        raise ConfigError(
            f"{path}.ssl_certfile", None, "the certificate that belongs to ssl_keyfile"
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = given.get("ssl_check_hostname", True)
    if not given.get("ssl_cafile"):
        context.load_default_certs()
    for name in ("ssl_cafile", "ssl_crlfile"):
        if file := given.get(name):
            try:
                context.load_verify_locations(file)
            except (OSError, TypeError) as error:
                raise ConfigError(
                    f"{path}.{name}", file, f"a readable PEM file ({_reason(error)})"
                ) from None
    if given.get("ssl_crlfile"):
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    if given.get("ssl_certfile"):
        _load_certificate(context, given, path)
    return context


def _load_certificate(context: ssl.SSLContext, given: Mapping[str, Any], path: str) -> None:
    files = given["ssl_certfile"], given.get("ssl_keyfile")
    try:
        # With None, OpenSSL would ask for the password on the terminal.
        context.load_cert_chain(*files, given.get("ssl_password") or "")
    except (OSError, TypeError, ValueError) as error:
        expected = f"a readable PEM certificate, and in ssl_keyfile its key ({_reason(error)})"
        if isinstance(error, ssl.SSLError):
            expected += "; ssl_password is the password of a key that is encrypted"
        raise ConfigError(
            f"{path}.ssl_certfile", [file for file in files if file], expected
        ) from None


def _reason(error: Exception) -> str:
    """Return OpenSSL's or the system's reason for an error."""
    if isinstance(error, ssl.SSLError):
        return error.reason or "not PEM, or a wrong password"
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__


# A part of OpenSSL's reason, from a TLS alert or from the bytes of the other side -> what to do.
ANSWERS: Final = (
    ("WRONG_VERSION_NUMBER", "it does not speak TLS on this port; security_protocol asks for TLS"),
    ("RECORD_LAYER_FAILURE", "it does not speak TLS on this port; security_protocol asks for TLS"),
    ("UNKNOWN_PROTOCOL", "it does not speak TLS on this port; security_protocol asks for TLS"),
    (
        "CERTIFICATE_REQUIRED",
        "it asks for a client certificate; set security.ssl_certfile and ssl_keyfile",
    ),
    (
        "ALERT_UNKNOWN_CA",
        "it does not know who signed our client certificate (security.ssl_certfile)",
    ),
    (
        "ALERT_BAD_CERTIFICATE",
        "it refuses our client certificate (security.ssl_certfile), or asks for one",
    ),
    ("ALERT_CERTIFICATE", "it refuses our client certificate (security.ssl_certfile)"),
    (
        "ALERT_HANDSHAKE_FAILURE",
        "it refuses the TLS handshake; perhaps it asks for a client certificate: ssl_certfile",
    ),
    ("PROTOCOL_VERSION", "it speaks an older TLS than 1.2"),
)


def refusal_of(error: BaseException) -> str | None:
    """Return a message about a permanent refusal by a broker; None if waiting may help."""
    if isinstance(error, kafka_errors.UnsupportedSaslMechanismError):
        return f"the broker does not support this security.sasl_mechanism ({error})"
    if isinstance(error, kafka_errors.IllegalSaslStateError):
        return (
            "the broker's port asks for no user name and password: set "
            "security.security_protocol to 'PLAINTEXT' or "
            "'SSL' and leave out security.sasl_*, or name the port that asks for them in servers"
        )
    if isinstance(error, kafka_errors.SaslAuthenticationFailedError):
        return f"the broker refuses security.sasl_plain_username with this password ({error})"
    if isinstance(error, kafka_errors.KafkaConfigurationError):
        return f"wrong security settings: {error}"
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _untrusted(cause)
        if isinstance(cause, ssl.SSLError):
            reason = cause.reason or ""
            answer = next((answer for part, answer in ANSWERS if part in reason), None)
            return None if answer is None else f"{answer} ({reason})"
    return None


def _untrusted(error: ssl.SSLCertVerificationError) -> str:
    detail = error.verify_message
    if "ostname mismatch" in detail or "IP address mismatch" in detail:
        return (
            f"the broker's certificate is for another host ({detail}); servers must name a "
            f"host that the certificate contains"
        )
    if "expired" in detail or "not yet valid" in detail:
        return (
            f"the broker's certificate is out of date, or this machine's clock is wrong ({detail})"
        )
    return (
        f"the broker's certificate is not trusted ({detail}); security.ssl_cafile must contain "
        f"the CA that signed it"
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, its causes and contexts, and the errors in its arguments: kafka-python wraps
    errors in all of these ways."""
    waiting, seen = [error], set()
    while waiting:
        cause = waiting.pop()
        if id(cause) not in seen:
            seen.add(id(cause))
            yield cause
            inner = [cause.__cause__, cause.__context__, *cause.args]
            waiting += [item for item in inner if isinstance(item, BaseException)]
