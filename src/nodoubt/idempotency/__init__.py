"""Idempotency keys: an effect at most once per key, its result replayed (I22).

The key is a row of ours that the effect's own transaction writes, so that both commit, or neither. Whoever comes while
the first is at work, prepared or in doubt is told so (`KeyInFlight`) and does not wait; what a crash cut off before it
was prepared leaves the key free.

- `keys`: PURE: keys, what identifies a payload, results as they are stored.
- `store`: the table: what is asked of it, under which lock.
- `claims`: look, begin, claim; expiry.
- `once`: the blocks, and the verb of both coordinators.
- `requests`: PURE: what the header means, and what is answered to it. `asgi` and `wsgi` speak it.
"""
