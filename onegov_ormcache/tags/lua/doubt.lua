-- Puts tags in doubt, before their writer's COMMIT.
--
-- KEYS[1], ARGV[1], ARGV[2]  see common.lua
-- ARGV[3]  the writer's id
-- ARGV[4]  its transaction's key; '' if the database knows none
-- ARGV[5]  JSON: tags (list), known (list: property tags whose policies the writer has
--          asked itself; all others are put in doubt with `tags`), read (object: tag to
--          version; all must still hold), computed (the same, of what the writer has read
--          from the database itself; versions of a quarantine may have outlasted its end)
-- Reply:   {0, tag} if that tag of `read` or `computed` does not hold, and nothing is
--          changed; else {1, tag, ...}: the writer's tags in doubt.
-- Atomic: if two writers have each read what the other changes, the one that comes
-- second finds the doubt of the first.
--
-- The end of a quarantine is no change, so what a writer has computed in it still holds. Nobody
-- has read from the cache what was computed in a quarantine, because nothing is stored there. A
-- writer that has read from the cache before the birth is refused, unless it was in doubt before;
-- of such a writer only the database knows, so the caller must have asked (core/write_skews.py).
local change = cjson.decode(ARGV[5])
local sent = doubt_of(ARGV[3])
local conflict = broken(change.read, ARGV[3]) or broken(change.computed, ARGV[3], true)
if conflict then
    return {0, conflict}
end
local known = {}
for _, tag in ipairs(change.known) do
    known[tag] = true
end
for _, tag in ipairs(change.tags) do
    known[tag] = true
end
for tag in pairs(members('properties')) do
    if not known[tag] then
        table.insert(change.tags, tag)
    end
end
if sent then
    -- doubts of one writer add up, in whichever order they arrive
    local listed = {}
    for _, tag in ipairs(change.tags) do
        listed[tag] = true
    end
    for _, tag in ipairs(sent.tags) do
        if not listed[tag] then
            table.insert(change.tags, tag)
        end
    end
end
set_doubt(ARGV[3], {tags = change.tags, key = ARGV[4], at = now()})
renew_epoch_by_changes()
-- the reply is made in the list itself, because unpack() fails for some thousand tags
table.insert(change.tags, 1, 1)
return change.tags
