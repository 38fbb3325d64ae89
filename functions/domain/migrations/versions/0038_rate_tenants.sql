-- Whose rate it is: a key is the name of a bucket, the tenant, and the device if it is a device's.
ALTER TABLE rate_arrivals ADD COLUMN tenant_id text GENERATED ALWAYS AS (split_part(key, '/', 2)) STORED;
