"""What is read out of InnoDB's status: the prepared transactions, and nothing of its rows."""

from __future__ import annotations

import pytest

from nodoubt.doctor.mariadb import Inner, prepared_of

MARIADB = """
------------
TRANSACTIONS
------------
LIST OF TRANSACTIONS FOR EACH SESSION:
---TRANSACTION (0x7f01a41c4280), not started
0 lock struct(s), heap size 1128, 0 row lock(s)
---TRANSACTION 26, ACTIVE 1 sec starting index read
mysql tables in use 1, locked 1
LOCK WAIT 2 lock struct(s), heap size 1128, 1 row lock(s)
MariaDB thread id 8, OS thread handle 139645023762112, query id 28 127.0.0.1 app Updating
update t set v=6 where id=3
------- TRX HAS BEEN WAITING 1202334 us FOR THIS LOCK TO BE GRANTED:
 3: len 4; hex 80000005; asc secret;;
------------------
---TRANSACTION 24, ACTIVE (PREPARED) 7 sec
2 lock struct(s), heap size 1128, 3 row lock(s), undo log entries 2
MariaDB thread id 6, OS thread handle 139645024376512, query id 17 127.0.0.1 app
---TRANSACTION 23, ACTIVE (PREPARED) 90000 sec recovered trx
2 lock struct(s), heap size 1128, 1 row lock(s), undo log entries 1
--------
FILE I/O
--------
MariaDB thread id 99, as some other section may say
"""
# As shown in Percona's and MySQL's bug reports; not seen on a server of our own.
MYSQL = """
---TRANSACTION 28992918, ACTIVE (PREPARED) 1072517 sec recovered trx
5 lock struct(s), heap size 1128, 0 row lock(s), undo log entries 8
---TRANSACTION 1303691515, ACTIVE (PREPARED) 2 sec
mysql tables in use 1, locked 1
1 lock struct(s), heap size 1136, 0 row lock(s), undo log entries 1
MySQL thread id 28078, OS thread handle 140128559306496, query id 6298771 app
"""


@pytest.mark.parametrize(
    ("status", "found"),
    [
        (MARIADB, [Inner(24, 7.0, 6, 3, 2), Inner(23, 90000.0, 0, 1, 1)]),
        (MYSQL, [Inner(28992918, 1072517.0, 0, 0, 8), Inner(1303691515, 2.0, 28078, 0, 1)]),
        ("", []),
    ],
)
def test_prepared_transactions_are_read_with_their_sessions(status: str, found: list[Inner]) -> None:
    assert prepared_of(status) == found
