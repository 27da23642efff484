"""Long jobs: chunk by chunk, each a transaction of its own that carries the checkpoint; progress for everybody to see.

The checkpoint is a row in the table of idempotency keys, one for each job: the transaction of a chunk puts a new one in
the place of the one that it began from. So a chunk and its checkpoint commit together, or neither does; and of two who
begin from the same checkpoint one commits, however long the other was asleep. The lease in the journal only keeps
workers out of each other's way (I13, I14).

- `records`: what is known of a job.
- `links`: the chain of checkpoints, where the effects are.
- `board`: who is at work on what, and how far they are, in the journal: for people, and for whoever wants to begin.
- `work`: the blocks. `verb`: the verbs of both coordinators. `bar`: the progress bar of a terminal.
"""
