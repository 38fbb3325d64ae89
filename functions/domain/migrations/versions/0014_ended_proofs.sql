-- When a token, a certificate or the status of a device last ceased to count as before. A session that began
-- earlier has to prove the device's identity again. NULL: never.
ALTER TABLE device_registry ADD COLUMN proof_ended_at timestamptz;

CREATE FUNCTION note_ended_proof() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.proof_ended_at := now();
    RETURN NEW;
END
$$;

CREATE TRIGGER device_proof_ended BEFORE UPDATE ON device_registry FOR EACH ROW
    WHEN (OLD.provision_token_hash IS DISTINCT FROM NEW.provision_token_hash OR OLD.status <> NEW.status)
    EXECUTE FUNCTION note_ended_proof();

CREATE FUNCTION note_ended_certificate() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE device_registry SET proof_ended_at = now()
    WHERE tenant_id = OLD.tenant_id AND device_id = OLD.device_id;
    RETURN NULL;
END
$$;

CREATE TRIGGER device_certificate_ended AFTER UPDATE ON device_certificates FOR EACH ROW
    WHEN (OLD.status = 'ACTIVE' AND NEW.status <> 'ACTIVE') EXECUTE FUNCTION note_ended_certificate();
CREATE TRIGGER device_certificate_deleted AFTER DELETE ON device_certificates FOR EACH ROW
    EXECUTE FUNCTION note_ended_certificate();
