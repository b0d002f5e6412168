"""The matrix: every kind of read times every kind of write, and that no pair breaks the promise.

``python -m tests.consistency.matrix`` runs the whole of it, ``test_matrix.py`` a sample.
:mod:`.entries` says what a read and a write are, :mod:`.schema` and :mod:`.ddl` which relations
they use, :mod:`.reads` and :mod:`.writes` list them, :mod:`.programs` makes the sessions, by the
package or as a host, :mod:`.places` reads cached properties in a unit of work, a thread and a
process, :mod:`.truth` reads without a cache, :mod:`.world` has both, and :mod:`.running` compares
them. :mod:`.known` lists the pairs that are known to fail.
"""
