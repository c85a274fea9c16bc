"""Inserts of rows that may exist already, for both databases."""

from functools import cache

from sqlalchemy import Connection, Insert, Table
from sqlalchemy.dialects import postgresql, sqlite


def insert_new(connection: Connection, table: Table) -> Insert:
    """Return an insert that skips rows whose key exists."""
    return _insert_new(connection.dialect.name, table)


def insert_or_replace(connection: Connection, table: Table) -> Insert:
    """Return an insert that overwrites every column of a row whose `id` exists."""
    return _insert_or_replace(connection.dialect.name, table)


@cache
def _insert_new(dialect: str, table: Table) -> Insert:
    if dialect == "sqlite":
        return sqlite.insert(table).on_conflict_do_nothing()
    return postgresql.insert(table).on_conflict_do_nothing()


@cache
def _insert_or_replace(dialect: str, table: Table) -> Insert:
    statement: sqlite.Insert | postgresql.Insert
    statement = sqlite.insert(table) if dialect == "sqlite" else postgresql.insert(table)
    columns = {
        column.name: statement.excluded[column.name]
        for column in table.columns
        if column.name != "id"
    }
    return statement.on_conflict_do_update(index_elements=["id"], set_=columns)
