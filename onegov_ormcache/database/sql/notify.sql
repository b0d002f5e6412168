-- The body of the trigger function: reports that a table was changed. A table's trigger
-- calls the function after each statement that changes the table. `database/triggers.py`
-- installs the function in each tenant's schema, and replaces it if its body is not
-- this text, comments included.
--
-- The arguments of a trigger are columns. Of these, it also reports the values that the changed
-- rows have, and had before. It needs the changed rows for this:
--     new_rows  the transition table of INSERT and UPDATE
--     old_rows  that of UPDATE and DELETE
--
-- A change in a schema that the transaction itself asks about is noted in a setting. The
-- settings are local to the transaction:
--     orm_cache.own      the schemas that a transaction of the package asks about
--                        before COMMIT, each between two commas: ,SCHEMA,,SCHEMA,
--                        It is empty after that question.
--     orm_cache.changed  JSON: from SCHEMA:TABLE to true or false. True if any change
--                        of the table was made by a function, a trigger or a cascade,
--                        and not by a statement of the client itself.
--     orm_cache.rows     JSON: from SCHEMA:TABLE to the values of all changed rows: from column
--                        to an array of texts or null. A column that is missing, or null instead
--                        of all columns: its values are not known.
--     orm_cache.sent     the same, of what was reported by notifications.
-- Any other change is reported by notifications, which PostgreSQL sends when the transaction
-- commits, in this order:
--     channel orm_cache_rows, payload JSON: table SCHEMA:TABLE, transaction its id, and rows as
--                             above; again for each statement that adds any. Not sent if the first
--                             statement tells no rows.
--     channel orm_cache, payload SCHEMA:TABLE; once per transaction, after the first rows
DECLARE
    own text := coalesce(current_setting('orm_cache.own', true), '');
    changes text[] := ARRAY[TG_TABLE_SCHEMA || ':' || TG_TABLE_NAME];
    changed text;
    context text;
    recorded jsonb;
    hidden boolean;
    is_own boolean;
    setting text;
    question text;
    statement jsonb; -- the values of this statement's rows; null if they are not known
    known jsonb;
    present jsonb;
    added jsonb;
BEGIN
    IF TG_NARGS > 0 AND TG_OP <> 'TRUNCATE' THEN
        -- equal values of these types have equal texts
        SELECT string_agg(format(
            -- one object for each column, because a function takes 100 arguments at most
            'jsonb_build_object(%L, ARRAY('
                'SELECT DISTINCT %s FROM (%s) AS every(value) LIMIT 65))',
            attname,
            -- the text of a date depends on a setting, but not in JSON
            CASE atttypid WHEN 1082 THEN 'to_jsonb(value) #>> ''{}'''
                ELSE 'value::text' END,
            CASE TG_OP
                WHEN 'INSERT' THEN format('SELECT %I FROM new_rows', attname)
                WHEN 'DELETE' THEN format('SELECT %I FROM old_rows', attname)
                ELSE format('SELECT %1$I FROM old_rows UNION ALL SELECT %1$I FROM new_rows',
                    attname)
            END
        ), ' || ') INTO question
        FROM pg_attribute
        WHERE attrelid = TG_RELID AND attname = ANY(TG_ARGV) AND NOT attisdropped
        -- smallint, integer, bigint, text, character varying, uuid, boolean, date
        AND atttypid IN (21, 23, 20, 25, 1043, 2950, 16, 1082)
        AND attgenerated <> 'v'
        AND (attcollation = 0 OR (
            SELECT collisdeterministic FROM pg_collation WHERE pg_collation.oid = attcollation
        ))
        -- if a trigger is missing or altered, this one does not see each change of the rows
        AND 4 + 8 + 16 + 32 = (
            SELECT sum(tgtype) FROM pg_trigger
            WHERE tgrelid = TG_RELID AND tgname LIKE 'orm\_cache\_notify%' AND tgenabled = 'A'
            AND tgqual IS NULL AND tgattr::text = ''
        );
        IF question IS NOT NULL THEN
            EXECUTE 'SELECT ' || question INTO statement;
            SELECT coalesce(jsonb_object_agg(key, value), '{}') INTO statement
            FROM jsonb_each(statement) WHERE jsonb_array_length(value) <= 64;
        END IF;
    END IF;
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
        is_own := strpos(own, ',' || split_part(changed, ':', 1) || ',') > 0;
        setting := CASE WHEN is_own THEN 'orm_cache.rows' ELSE 'orm_cache.sent' END;
        recorded := coalesce(nullif(current_setting('orm_cache.changed', true), ''), '{}');
        known := coalesce(nullif(current_setting(setting, true), ''), '{}');
        -- of a transaction that has named a table before it tells rows, no rows are told
        IF statement IS NOT NULL OR known ? changed
            OR NOT is_own AND (TG_NARGS > 0 OR cardinality(changes) > 1)
        THEN
            present := known -> changed;
            IF present = 'null' THEN
                added := present;
            ELSIF present IS NULL AND NOT (is_own AND recorded ? changed) THEN
                added := statement;
            ELSIF present @> statement AND (SELECT count(*) FROM jsonb_object_keys(present))
                = (SELECT count(*) FROM jsonb_object_keys(statement))
            THEN
                added := present;
            ELSE
                -- only what all statements have told of is known; one has told nothing if there
                -- is no present value, and the result is null then
                SELECT jsonb_strip_nulls(jsonb_object_agg(key, (
                    SELECT CASE WHEN count(*) <= 64 THEN jsonb_agg(value) END
                    FROM (
                        SELECT value FROM jsonb_array_elements(earlier.value)
                        UNION SELECT value FROM jsonb_array_elements(later.value)
                    ) AS every
                ))) INTO added
                FROM jsonb_each(present) AS earlier
                JOIN jsonb_each(statement) AS later USING (key);
            END IF;
            -- the payload of a notification has room for 7999 bytes
            added := CASE WHEN octet_length(added::text) <= 7000 THEN added ELSE 'null' END;
            IF present IS DISTINCT FROM added THEN
                known := known || jsonb_build_object(changed, added);
                PERFORM set_config(setting, known::text, true);
                IF NOT is_own AND (present IS NOT NULL OR added <> 'null') THEN
                    PERFORM pg_notify('orm_cache_rows', jsonb_build_object(
                        'table', changed, 'transaction', pg_current_xact_id()::text, 'rows', added
                    )::text);
                END IF;
            END IF;
        END IF;
        IF is_own THEN
            -- PG_CONTEXT is one line for this function; it has more lines if the statement
            -- was not the client's own, but that of a function, a trigger or a cascade
            GET DIAGNOSTICS context = PG_CONTEXT;
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
