"""What takes part in a transaction: scripts over sessions, one kind of database each."""
