-- Selects relations, with all that can make a statement touch more than it names. Run by
-- `database/catalog.py`. It uses indexes alone, so its cost does not grow with the number of
-- tenants.
--
--     schemas, names  arrays of the same length: relations by schema and name
--     oids            relations by oid
--     notify          the name of the package's function for triggers, with which the names of its
--                     own triggers begin
--
-- A relation's columns:
--     shown_by    JSON: [schema, name] of all relations that show its rows: tables that it is a
--                 partition or INHERITS child of, and views
--     references  JSON: the foreign keys that refer to it and act on changes
--     is_more     why reading it may read other relations; null if it can't
--     acts        why changing it may change more than it and what is in `shown_by` and
--                 `references`; null if it can't
--     deferred    true if it has a trigger that may run in COMMIT
--     stored      JSON: the types of columns that hold a value as it is given, and find no other
--                 one equal, by column; 'enum' for any enumeration. Generated columns are not among
--                 them, nor those with a collation, or in a unique index with one, that may find
--                 different texts equal
WITH RECURSIVE wanted(id) AS (
    SELECT c.oid
    FROM unnest(CAST(:schemas AS text[]), CAST(:names AS text[])) AS given(schema, name)
    JOIN pg_namespace n ON n.nspname = given.schema
    JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = given.name
    UNION SELECT oid FROM pg_class WHERE oid = ANY(CAST(:oids AS oid[]))
), shown(id, by) AS (
    SELECT id, id FROM wanted
    UNION
    SELECT shown.id, above.id
    FROM shown CROSS JOIN LATERAL (
        SELECT inhparent FROM pg_inherits WHERE inhrelid = shown.by
        UNION ALL
        SELECT ev_class
        FROM pg_depend d
        JOIN pg_rewrite r ON r.oid = d.objid AND r.ev_class <> shown.by
        JOIN pg_class v ON v.oid = r.ev_class AND v.relkind = 'v'
        WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = shown.by
        AND d.classid = 'pg_rewrite'::regclass
    ) AS above(id)
)
SELECT c.oid, n.nspname, c.relname, c.relkind, c.relpersistence = 't' AS is_temporary,
    (
        SELECT json_agg(json_build_array(sn.nspname, sc.relname))
        FROM shown s
        JOIN pg_class sc ON sc.oid = s.by
        JOIN pg_namespace sn ON sn.oid = sc.relnamespace
        WHERE s.id = c.oid AND s.by <> c.oid
    ) AS shown_by,
    (
        SELECT json_agg(json_build_object(
            'schema', kn.nspname, 'table', kc.relname,
            'on_delete', k.confdeltype, 'on_update', k.confupdtype,
            'referred', (
                SELECT json_agg(attname) FROM pg_attribute
                WHERE attrelid = k.confrelid AND attnum = ANY(k.confkey)
            ),
            'columns', (
                SELECT json_agg(attname) FROM pg_attribute
                WHERE attrelid = k.conrelid AND attnum = ANY(k.conkey)
            )
        ))
        FROM pg_constraint k
        JOIN pg_class kc ON kc.oid = k.conrelid
        JOIN pg_namespace kn ON kn.oid = kc.relnamespace
        WHERE k.oid IN (
            SELECT tgconstraint FROM pg_trigger WHERE tgrelid = c.oid AND tgisinternal
        )
        AND k.contype = 'f' AND k.confrelid = c.oid
        AND (k.confdeltype IN ('c', 'n', 'd') OR k.confupdtype IN ('c', 'n', 'd'))
    ) AS references,
    CASE
        WHEN c.relkind <> 'r' THEN 'is no plain table'
        WHEN c.relrowsecurity THEN 'has row level security'
        WHEN EXISTS (SELECT FROM pg_inherits WHERE c.oid IN (inhrelid, inhparent))
            THEN 'has partitions or children, or is one'
    END AS is_more,
    CASE
        WHEN EXISTS (
            SELECT FROM pg_trigger t JOIN pg_proc f ON f.oid = t.tgfoid
            WHERE t.tgrelid = c.oid AND NOT t.tgisinternal
            AND NOT (starts_with(t.tgname, :notify) AND f.proname = :notify)
        ) THEN 'has a trigger'
        WHEN EXISTS (SELECT FROM pg_rewrite WHERE ev_class = c.oid) THEN 'has a rule'
        WHEN EXISTS (
            SELECT FROM pg_attrdef a
            JOIN pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = a.oid
            WHERE a.adrelid = c.oid AND d.refclassid = 'pg_proc'::regclass
            UNION ALL
            SELECT FROM pg_constraint k
            JOIN pg_depend d ON d.classid = 'pg_constraint'::regclass AND d.objid = k.oid
            WHERE k.conrelid = c.oid AND d.refclassid = 'pg_proc'::regclass
        ) THEN 'has a default or constraint that calls a function'
    END AS acts,
    EXISTS (
        SELECT FROM pg_trigger WHERE tgrelid = c.oid AND NOT tgisinternal AND tgdeferrable
    ) AS deferred,
    (
        SELECT json_object_agg(attname, CASE t.typtype WHEN 'e' THEN 'enum' ELSE typname END)
        FROM pg_attribute a
        JOIN pg_type t ON t.oid = a.atttypid
        LEFT JOIN pg_collation l ON l.oid = a.attcollation
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        AND a.attgenerated = ''
        AND coalesce(l.collisdeterministic, true)
        AND (
            t.typtype = 'e'
            OR t.oid IN (
                'bool'::regtype, 'int2'::regtype, 'int4'::regtype, 'int8'::regtype,
                'text'::regtype, 'varchar'::regtype, 'uuid'::regtype, 'date'::regtype,
                'bytea'::regtype
            )
            OR (t.oid = 'timestamp'::regtype AND a.atttypmod = -1)
        )
        AND NOT EXISTS (
            SELECT FROM pg_index i JOIN pg_collation o ON o.oid = ANY(i.indcollation)
            WHERE i.indrelid = c.oid AND i.indisunique AND a.attnum = ANY(i.indkey)
            AND NOT o.collisdeterministic
        )
    ) AS stored
FROM wanted
JOIN pg_class c ON c.oid = wanted.id
JOIN pg_namespace n ON n.oid = c.relnamespace
