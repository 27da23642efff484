"""Somebody new: an account here, a mailbox, a directory entry and a team elsewhere."""
