"""The engine carries out what the protocol decides.

`phases` drives the machine, `branches` ends one branch, `register` is the way to the one decision, `sweep` is
recovery, `staged` is the verbs by name, `start` admits databases, `upkeep` runs behind. All of these are scripts;
`shell` and `pool` are the two ways, threads and asyncio, to run them.

Must not: import a journal, a resource or a driver. It knows ports only; the coordinator wires.
"""
