"""The world outside of every database: payments, mailboxes, a directory, letters, parcels; in a process of its own.

`python -m examples.outside FILE` runs the service; `client` is what a program needs to speak to it.
"""
