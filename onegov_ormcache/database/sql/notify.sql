-- The body of the function that a table's trigger calls after each statement that
-- changed it: tells what was changed. `database/triggers.py` installs it, one in each
-- tenant's schema; there is no other version than this text.
--
-- Settings, all local to the transaction:
--     orm_cache.own      the schemas that this transaction of the package is about, as
--                        long as it still asks for what they changed: ,SCHEMA,SCHEMA,
--     orm_cache.changed  JSON: SCHEMA:TABLE in one of these, to whether anything but
--                        a statement of the client itself has changed it: a
--                        function, a trigger, a cascade
-- Everybody else is told by a notification, when the transaction commits:
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
        -- a change of a partition is one of its parents, and the other way round
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
            -- one line for this function; more if its statement was not the client's own
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
