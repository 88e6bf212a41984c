"""Keys: text of 1 to 4096 bytes in UTF-8."""

from __future__ import annotations

from tierstore.ringbuf.errors import InvalidKey
from tierstore.ringbuf.layout import KEY_BYTES_MAX


def check_key(key: str) -> bytes:
    """The key's bytes. Raises InvalidKey with what is wrong and what is allowed."""
    if not isinstance(key, str):
        raise InvalidKey(f"a key must be text, not {type(key).__name__} ({key!r:.60})")
    try:
        raw = key.encode()
    except UnicodeEncodeError as error:
        raise InvalidKey(
            f"key {key!r:.60} cannot be written in UTF-8: {error.reason}; remove lone surrogates"
        ) from None
    if not 0 < len(raw) <= KEY_BYTES_MAX:
        raise InvalidKey(
            f"key {key!r:.60} has {len(raw)} bytes; allowed are 1 to {KEY_BYTES_MAX}: use a digest of long names"
        )
    return raw
