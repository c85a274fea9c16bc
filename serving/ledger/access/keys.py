"""API keys `ng-ID-SECRET`. The database stores the id and a digest of the secret."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from pydantic import SecretStr
from sqlalchemy import Connection, insert, select, update

from serving.contracts.errors import InvalidRequest, NotFound
from serving.ledger.access.tenants import require_tenant
from serving.ledger.database import Database
from serving.ledger.schema import api_keys

_FORM = re.compile(r"ng-([0-9a-f]{12})-([A-Za-z0-9_-]{43})")
_ID_BYTES = 6
_SECRET_BYTES = 32
_LONGEST_LABEL = 100
# Compared with the secret of an unknown key: as long as a digest, and no key's digest.
_NO_DIGEST = "0" * 64


@dataclass(frozen=True, slots=True)
class LiveKey:
    """A key that is not revoked. tenant: None for an admin key. evidence_external: as Caller's."""

    id: str
    tenant: str | None
    admin: bool
    secret_sha256: str = field(repr=False)
    evidence_external: bool | None = None


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """The fields of a key that may be shown."""

    id: str
    tenant: str | None
    admin: bool
    label: str
    created_at: datetime
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A new key. text: the whole key, which is not stored."""

    id: str
    text: SecretStr


def matching(
    presented: str,
    live: Mapping[str, LiveKey],
    is_same: Callable[[str, str], bool] = hmac.compare_digest,
) -> LiveKey | None:
    """Return the live key with this text; None for any other text.

    Computes one digest and compares once (is_same, in constant time) whatever the text is, so that
    the time taken does not reveal which ids exist or how much of a secret is right.
    """
    form = _FORM.fullmatch(presented)
    key_id, secret = form.groups() if form else ("", "")
    key = live.get(key_id)
    expected = key.secret_sha256 if key is not None else _NO_DIGEST
    return key if is_same(_digest(secret), expected) else None


def create_key(
    database: Database,
    tenant: str | None,
    label: str = "",
    *,
    evidence_external: bool | None = None,
) -> IssuedKey:
    """Create a key and store it; blocking. tenant: None creates an admin key.

    evidence_external: False keeps the inputs of its requests from providers' audits for good.
    Raises NotFound for an unknown tenant, InvalidRequest for a label that is too long or cannot be
    printed.
    """
    if len(label) > _LONGEST_LABEL or not label.isprintable():
        raise InvalidRequest(
            f"the label {label[:_LONGEST_LABEL]!r} is too long or cannot be printed",
            field="label",
            fix=f"use at most {_LONGEST_LABEL} printable characters",
        )
    key_id, secret = secrets.token_hex(_ID_BYTES), secrets.token_urlsafe(_SECRET_BYTES)
    row = {
        "id": key_id,
        "tenant": tenant,
        "admin": tenant is None,
        "label": label,
        "secret_sha256": _digest(secret),
        "created_at": datetime.now(UTC),
        "evidence_external": evidence_external,
    }
    with database.begin() as connection:
        if tenant is not None:
            require_tenant(connection, tenant)
        connection.execute(insert(api_keys), row)
    return IssuedKey(key_id, SecretStr(f"ng-{key_id}-{secret}"))


def revoke_key(database: Database, key_id: str) -> None:
    """Revoke a key permanently; blocking. Revoking it again changes nothing. Raises NotFound."""
    with database.begin() as connection:
        known = connection.execute(select(api_keys.c.id).where(api_keys.c.id == key_id)).first()
        if known is None:
            raise NotFound(
                f"no key with the id {key_id!r}",
                field="id",
                fix="narrowgate key list shows the ids",
            )
        connection.execute(
            update(api_keys)
            .where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
            .values(revoked_at=datetime.now(UTC))
        )


def list_keys(database: Database) -> list[KeyRecord]:
    """Return every key ever made, oldest first; blocking."""
    shown = (
        api_keys.c.id,
        api_keys.c.tenant,
        api_keys.c.admin,
        api_keys.c.label,
        api_keys.c.created_at,
        api_keys.c.revoked_at,
    )
    with database.read() as connection:
        rows = connection.execute(select(*shown).order_by(api_keys.c.created_at, api_keys.c.id))
        return [KeyRecord(*row) for row in rows]


def live_keys(connection: Connection) -> dict[str, LiveKey]:
    """Return the keys that are not revoked, by id."""
    columns = (
        api_keys.c.id,
        api_keys.c.tenant,
        api_keys.c.admin,
        api_keys.c.secret_sha256,
        api_keys.c.evidence_external,
    )
    rows = connection.execute(select(*columns).where(api_keys.c.revoked_at.is_(None)))
    return {row.id: LiveKey(*row) for row in rows}


def _digest(secret: str) -> str:
    # Of the text, because the last character of base64 has bits that decoding drops.
    return hashlib.sha256(secret.encode()).hexdigest()
