"""Where decisions live: in PostgreSQL, MariaDB or SQLite (`sql`, by `dialects`), or in memory for tests."""
