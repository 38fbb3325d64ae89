-- Why a job was refused stands in its row.
ALTER TABLE delivery_outbox DROP COLUMN header;
