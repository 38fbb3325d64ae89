"""Commands of a database of before go on: what was never sent is sent, and answers stay."""

from pathlib import Path

from functions.commands.store import end_overdue, send_due
from runtime.resource.postgres import open_pool

VERSIONS = Path(__file__).parents[2] / "functions" / "domain" / "migrations" / "versions"
FIRST = "0030"

ROWS = """
INSERT INTO tenants (tenant_id) VALUES ('test');
INSERT INTO device_registry (tenant_id, device_id, site_id) VALUES ('test', 'dev1', 's1');
INSERT INTO device_commands
    (command_id, tenant_id, device_id, name, timeout_s, status, expires_at, sent_at, finished_at)
SELECT command_id, 'test', 'dev1', 'n', 60, status, now() + ends_in, now() - sent_since,
       CASE WHEN status = 'succeeded' THEN now() END
FROM (VALUES ('unsent', 'queued', interval '1 hour', NULL::interval),
             ('late', 'queued', interval '-1 hour', NULL),
             ('sent', 'sent', interval '1 hour', interval '1 second'),
             ('slow', 'sent', interval '1 hour', interval '1 hour'),
             ('done', 'succeeded', interval '1 hour', interval '1 hour')
) AS old (command_id, status, ends_in, sent_since);
INSERT INTO device_command_acks VALUES ('done', 1, 1, 'succeeded', '7', false, now());
"""


async def test_commands_of_before_are_sent_and_ended_and_keep_their_answers(
    empty_postgres_dsn: str,
) -> None:
    pool = await open_pool(empty_postgres_dsn, max_size=2)
    files = sorted(VERSIONS.glob("0*.sql"))
    before = [file for file in files if file.name < FIRST]
    assert before
    async with pool.acquire() as connection:
        for file in before:
            await connection.execute(file.read_text(encoding="utf-8"))
        await connection.execute(ROWS)
        for file in files[len(before) :]:
            await connection.execute(file.read_text(encoding="utf-8"))
    assert sorted(await end_overdue(pool, 10)) == ["expired", "timed_out"]
    assert await send_due(pool, 10) == 1
    subject = "SELECT subject FROM delivery_outbox WHERE queue = 'test/downlinks'"
    assert await pool.fetchval(subject) == "downlinks.test.dev1.commands.unsent"
    rows = await pool.fetch("SELECT tenant_id, device_id, command_id FROM device_command_acks")
    assert [tuple(row) for row in rows] == [("test", "dev1", "done")]
    await pool.close()
