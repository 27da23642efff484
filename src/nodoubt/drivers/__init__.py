"""Sessions: one connection each, sync and async. The only rooms that import a database driver."""
