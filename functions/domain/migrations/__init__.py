"""The schema's versions: `versions/NNNN_name.py`, each with its statements in `NNNN_name.sql`.

The number is the revision. Never change a released version; add a new one.
"""

from pathlib import Path

from alembic import op


def execute_sql(version_file: str) -> None:
    """Run the `.sql` file beside a version: `execute_sql(__file__)`.

    The text goes to the server unchanged: `:name` and `%` have no meaning in the file.
    """
    sql = Path(version_file).with_suffix(".sql").read_text(encoding="utf-8")
    op.get_context().impl.static_output(sql)
