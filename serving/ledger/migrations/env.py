"""Runs the revisions on the connection that serving.ledger.migrate gives to Alembic."""

from alembic import context

# The caller's transaction surrounds all revisions and the version table.
context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
