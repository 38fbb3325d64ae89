-- Who may connect. Run in single-user mode, where a blank line ends a statement, on every change of
-- a password and once for data that an earlier version made; so each statement may be repeated.

-- Functions and migrations: owner of the database, and nothing beyond it. As no superuser they can
-- neither read the server's files nor run programs.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'functions') THEN
        CREATE ROLE functions;
    END IF;
    EXECUTE format(
        'ALTER ROLE functions LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION PASSWORD %L',
        current_setting('embedded.functions_password')
    );
    EXECUTE format(
        'ALTER ROLE runtime PASSWORD %L', current_setting('embedded.superuser_password')
    );
END
$$;

ALTER DATABASE runtime OWNER TO functions;
