"""Benchmarks: nodoubt beside what it is measured against, in alternating rounds. See README.md."""
