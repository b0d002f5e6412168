-- The body of the trigger function: reports that a table was changed. A table's trigger
-- calls the function after each statement that changes the table. `database/triggers.py`
-- installs the function in each tenant's schema, and replaces it if its body is not
-- this text, comments included.
--
-- A change in a schema that the transaction itself asks about is noted in a setting. Both
-- settings are local to the transaction:
--     orm_cache.own      the schemas that a transaction of the package asks about
--                        before COMMIT, each between two commas: ,SCHEMA,,SCHEMA,
--                        It is empty after that question.
--     orm_cache.changed  JSON: from SCHEMA:TABLE to true or false. True if any change
--                        of the table was made by a function, a trigger or a cascade,
--                        and not by a statement of the client itself.
-- Any other change is reported by a notification, which PostgreSQL sends when the
-- transaction commits:
--     channel orm_cache, payload SCHEMA:TABLE
DECLARE
    own text := current_setting('orm_cache.own', true);
    changes text[] := ARRAY[TG_TABLE_SCHEMA || ':' || TG_TABLE_NAME];
    changed text;
    context text;
    recorded jsonb;
    hidden boolean;
BEGIN
    IF EXISTS (SELECT FROM pg_inherits WHERE TG_RELID IN (inhrelid, inhparent)) THEN
        -- a change of a partition is also a change of its parents, and the reverse
        WITH RECURSIVE parents(id) AS (
            SELECT TG_RELID
            UNION SELECT inhparent FROM pg_inherits JOIN parents ON inhrelid = id
        ), children(id) AS (
            SELECT TG_RELID
            UNION SELECT inhrelid FROM pg_inherits JOIN children ON inhparent = id
        )
        SELECT array_agg(nspname || ':' || relname) INTO changes
        FROM (SELECT id FROM parents UNION SELECT id FROM children) AS family
        JOIN pg_class ON pg_class.oid = id
        JOIN pg_namespace ON pg_namespace.oid = relnamespace;
    END IF;
    FOREACH changed IN ARRAY changes LOOP
        IF strpos(own, ',' || split_part(changed, ':', 1) || ',') > 0 THEN
            -- PG_CONTEXT is one line for this function; it has more lines if the statement
            -- was not the client's own, but that of a function, a trigger or a cascade
            GET DIAGNOSTICS context = PG_CONTEXT;
            recorded := coalesce(nullif(current_setting('orm_cache.changed', true), ''), '{}');
            hidden := strpos(context, E'\n') > 0
                OR coalesce((recorded ->> changed)::boolean, false);
            recorded := recorded || jsonb_build_object(changed, hidden);
            PERFORM set_config('orm_cache.changed', recorded::text, true);
        ELSE
            PERFORM pg_notify('orm_cache', changed);
        END IF;
    END LOOP;
    RETURN NULL;
END
