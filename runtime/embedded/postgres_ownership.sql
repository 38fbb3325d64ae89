-- Hands to `functions` what a superuser made in the database for functions, in an earlier version.
-- What belongs to an extension stays with its owner; a sequence of a column follows its table.
DO $$
DECLARE
    statement text;
BEGIN
    FOR statement IN
        SELECT format('ALTER SCHEMA %I OWNER TO functions', nspname)
        FROM pg_namespace
        WHERE nspname NOT LIKE 'pg\_%' AND nspname NOT IN ('information_schema', 'public')
        UNION ALL
        SELECT format(
            'ALTER %s %s OWNER TO functions',
            CASE relkind
                WHEN 'S' THEN 'SEQUENCE' WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW'
                WHEN 'f' THEN 'FOREIGN TABLE' ELSE 'TABLE'
            END,
            pg_class.oid::regclass
        )
        FROM pg_class
        JOIN pg_namespace ON pg_namespace.oid = relnamespace
        WHERE relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
            AND nspname NOT LIKE 'pg\_%' AND nspname <> 'information_schema'
            AND NOT EXISTS (
                SELECT FROM pg_depend
                WHERE classid = 'pg_class'::regclass AND objid = pg_class.oid
                    AND (deptype = 'e' OR relkind = 'S' AND deptype IN ('a', 'i'))
            )
        UNION ALL
        SELECT format('ALTER TYPE %s OWNER TO functions', pg_type.oid::regtype)
        FROM pg_type
        JOIN pg_namespace ON pg_namespace.oid = typnamespace
        LEFT JOIN pg_class ON pg_class.oid = typrelid
        WHERE typtype IN ('c', 'd', 'e', 'r') AND coalesce(relkind, 'c') = 'c'
            AND nspname NOT LIKE 'pg\_%' AND nspname <> 'information_schema'
            AND NOT EXISTS (
                SELECT FROM pg_depend
                WHERE classid = 'pg_type'::regclass AND objid = pg_type.oid AND deptype = 'e'
            )
        UNION ALL
        SELECT format('ALTER ROUTINE %s OWNER TO functions', pg_proc.oid::regprocedure)
        FROM pg_proc
        JOIN pg_namespace ON pg_namespace.oid = pronamespace
        WHERE nspname NOT LIKE 'pg\_%' AND nspname <> 'information_schema'
            AND NOT EXISTS (
                SELECT FROM pg_depend
                WHERE classid = 'pg_proc'::regclass AND objid = pg_proc.oid AND deptype IN ('e', 'i')
            )
    LOOP
        EXECUTE statement;
    END LOOP;
END
$$;
