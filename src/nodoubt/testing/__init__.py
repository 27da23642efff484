"""Public aids for tests: real servers that can be killed, and connections that can be cut.

Guarantees: importing this package starts nothing and imports no driver.

Must not: be imported by production code.
"""
