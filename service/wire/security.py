"""Who may talk to whom: the token, the certificates, and the rule that nothing is exposed without both.

The token is one line in a file. A daemon compares it in constant time; a client sends it first on each connection, and
never in clear text to another machine. TLS is 1.2 at least, 1.3 where both sides have it. With ``tls_client_auth`` the daemon
also wants a certificate from its clients, signed by ``tls_ca``.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import ssl
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tierstore.ringbuf.errors import ConfigError

from . import settings

if TYPE_CHECKING:
    from ..config import StoreConfig

TOKEN_MIN, TOKEN_MAX = 16, 1024  # characters
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"  # of TLS 1.2; those of 1.3 are all sound


@dataclass(frozen=True)
class Security:
    """What a node shows and what it asks for. Everything None: no token, no TLS; for loopback only."""

    token: str | None = field(default=None, repr=False)
    token_file: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_ca: str | None = None
    tls_client_auth: bool = False

    @classmethod
    def of(cls, config: StoreConfig) -> Security:
        """As a configuration says; reads the token. Raises ConfigError."""
        token = read_token(config.token_file) if config.token_file else None
        made = cls(token, config.token_file, config.tls_cert, config.tls_key, config.tls_ca, config.tls_client_auth)
        settings.check_pairs(made)
        return made

    @property
    def tls(self) -> bool:
        """Whether connections are made and taken over TLS."""
        return bool(self.tls_cert or self.tls_ca)

    def accepts(self, token: object) -> bool:
        """Whether a caller's token is ours; takes as long whatever is wrong with it."""
        given = token.encode(errors="replace") if isinstance(token, str) else b""
        expected = self.token.encode() if self.token is not None else given
        return hmac.compare_digest(hashlib.sha256(given).digest(), hashlib.sha256(expected).digest())

    def server_context(self) -> ssl.SSLContext | None:
        """For a Listener; None without TLS. Raises ConfigError naming the file that cannot be used."""
        if not self.tls_cert:
            return None
        context = _strict(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        context.num_tickets = 0  # connections are kept, not resumed
        self._load_pair(context)
        if self.tls_client_auth:
            context.verify_mode = ssl.CERT_REQUIRED
            self._load_ca(context)
        return context

    def client_context(self) -> ssl.SSLContext | None:
        """For a Peer; None without TLS. Without tls_ca the system's authorities are trusted. Raises ConfigError."""
        if not self.tls:
            return None
        context = _strict(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        if self.tls_ca:
            self._load_ca(context)
        else:
            context.load_default_certs()
        if self.tls_cert:
            self._load_pair(context)
        return context

    def _load_pair(self, context: ssl.SSLContext) -> None:
        assert self.tls_cert and self.tls_key
        _check_readable(self.tls_cert, "tls_cert")
        check_private(self.tls_key, "tls_key")
        try:
            context.load_cert_chain(self.tls_cert, self.tls_key, password=_no_password)
        except (ssl.SSLError, ValueError) as error:
            what = getattr(error, "reason", None) or error
            if what == "KEY_VALUES_MISMATCH":
                raise ConfigError("tls_key", self.tls_key, f"the key of the certificate in {self.tls_cert}") from None
            allowed = (
                f"a PEM file with a certificate, and tls_key = {self.tls_key!r} one with its unencrypted key ({what})"
            )
            raise ConfigError("tls_cert", self.tls_cert, allowed) from None

    def _load_ca(self, context: ssl.SSLContext) -> None:
        assert self.tls_ca
        _check_readable(self.tls_ca, "tls_ca")
        try:
            context.load_verify_locations(cafile=self.tls_ca)
        except ssl.SSLError as error:
            allowed = f"a PEM file with the certificates of authorities ({error.reason or error})"
            raise ConfigError("tls_ca", self.tls_ca, allowed) from None


def read_token(path: str) -> str:
    """The token in a file. Raises ConfigError; what is in the file is in no message."""
    check_private(path, "token_file")
    try:
        with open(path, encoding="ascii") as file:
            token = file.read(TOKEN_MAX + 2).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("token_file", path, f"a readable file with one line of ASCII ({_why(error)})") from None
    if not TOKEN_MIN <= len(token) <= TOKEN_MAX or not token.isprintable() or " " in token:
        allowed = (
            f"a file with one line of {TOKEN_MIN} to {TOKEN_MAX} printable characters without blanks, "
            f"for example from `openssl rand -hex 32`"
        )
        raise ConfigError("token_file", path, allowed)
    return token


def check_private(path: str, key: str) -> None:
    """Raise ConfigError if a secret file can be read by others; by its group only where another user owns it."""
    _check_readable(path, key)
    status = os.stat(path)
    open_to = stat.S_IRWXO | (stat.S_IRWXG if status.st_uid == os.getuid() else 0)
    if status.st_mode & open_to:
        mode = stat.S_IMODE(status.st_mode)
        raise ConfigError(key, path, f"a file that only its owner can read: its mode is {mode:04o}; chmod 600 {path}")


def _check_readable(path: str, key: str) -> None:
    try:
        with open(path, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigError(key, path, "a regular file")
    except OSError as error:
        raise ConfigError(key, path, f"a readable file ({_why(error)})") from None


def _strict(context: ssl.SSLContext) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    return context


def _no_password() -> str:
    """In place of OpenSSL's question on the terminal."""
    raise ValueError("the key is encrypted")


def _why(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
