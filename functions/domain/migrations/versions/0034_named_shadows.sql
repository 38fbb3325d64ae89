-- A device has a shadow without a name, and others by their names.

ALTER TABLE device_shadow_updates DROP CONSTRAINT device_shadow_updates_tenant_id_device_id_fkey;

ALTER TABLE device_shadows
    -- empty: the shadow without a name
    ADD COLUMN name text NOT NULL DEFAULT '' CHECK (name ~ '^[A-Za-z0-9_:-]{0,64}$'),
    DROP CONSTRAINT device_shadows_pkey,
    ADD PRIMARY KEY (tenant_id, device_id, name);

CREATE INDEX device_shadows_forgettable ON device_shadows (deleted_at) WHERE deleted_at IS NOT NULL AND name <> '';

-- Which messages of a device were answered, questions included: a redelivery finds itself here and changes nothing.
ALTER TABLE device_shadow_updates RENAME TO device_shadow_requests;
ALTER TABLE device_shadow_requests
    DROP COLUMN version,
    ADD FOREIGN KEY (tenant_id, device_id) REFERENCES device_registry ON DELETE CASCADE;
