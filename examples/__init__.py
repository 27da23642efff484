"""Programs that use nodoubt; each is run by a test in tests/examples."""
