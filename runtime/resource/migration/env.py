"""Alembic's environment: writes the statements of an upgrade instead of running them.

`runtime.resource.postgres` runs them, over the one driver that the runtime has, in one transaction.
"""

from alembic import context

context.configure(
    dialect_name="postgresql",
    version_table=context.config.get_main_option("version_table"),
    transactional_ddl=False,
)
context.run_migrations()
