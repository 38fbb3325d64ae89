"""The schema's history, a line of `versions/NNNN_name.py` with statements in `NNNN_name.sql`.

The number is the revision. A version is never changed after its release; another one follows it.
"""

from pathlib import Path

from alembic import op


def execute_sql(version_file: str) -> None:
    """Run the `.sql` file that stands beside a version: `execute_sql(__file__)`.

    Its text goes to the server as it is: `:name` and `%` mean nothing in it.
    """
    sql = Path(version_file).with_suffix(".sql").read_text(encoding="utf-8")
    op.get_context().impl.static_output(sql)
