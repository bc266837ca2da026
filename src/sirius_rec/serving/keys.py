"""Bearer keys: compared by their hashes in constant time, and written nowhere."""

from __future__ import annotations

import hashlib
import hmac
import os
from pathlib import Path

from sirius_rec.errors import ConfigError

API_KEYS, ADMIN_KEY = "SIRIUS_API_KEYS", "SIRIUS_ADMIN_KEY"


class Keys:
    """A set of keys; without any, everybody is let in (`open`)."""

    def __init__(self, keys: list[str]) -> None:
        self._hashes = [_hash(key) for key in keys]

    @property
    def open(self) -> bool:
        return not self._hashes

    def admit(self, authorization: str | None) -> bool:
        """Whether a header `Authorization: Bearer KEY` holds one of the keys. Every key is compared."""
        kind, _, key = (authorization or "").partition(" ")
        given = _hash(key.strip() if kind.lower() == "bearer" else "")
        found = False
        for own in self._hashes:
            found |= hmac.compare_digest(own, given)
        return found and bool(key.strip())


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def api_keys(path: Path | None) -> Keys:
    """Keys of the environment (separated by commas or white space) and of a file (one per line, # for remarks).

    ConfigError for a file that cannot be read or has no key, and for keys that could be guessed.
    """
    keys = os.environ.get(API_KEYS, "").replace(",", " ").split()
    if path is not None:
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"--api-keys {path}: cannot be read ({getattr(error, 'strerror', None) or error})"
            ) from None
        own = [line for line in lines if line and not line.startswith("#")]
        if not own:
            raise ConfigError(f"--api-keys {path}: has no key: write one per line")
        keys += own
    return _long_enough(keys, API_KEYS if path is None else f"{API_KEYS} and --api-keys")


def admin_key() -> Keys:
    """The key of /admin/reload; without it nobody is let in there."""
    return _long_enough(os.environ.get(ADMIN_KEY, "").split(), ADMIN_KEY)


def _long_enough(keys: list[str], where: str) -> Keys:
    if any(len(key) < 8 for key in keys):
        raise ConfigError(f"{where}: a key has fewer than 8 characters: make one with `openssl rand -hex 24`")
    if not all(key.isascii() for key in keys):  # clients disagree on how a header holds other letters
        raise ConfigError(f"{where}: a key has letters outside ASCII: make one with `openssl rand -hex 24`")
    return Keys(keys)
