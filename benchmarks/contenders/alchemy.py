"""SQLAlchemy's own two-phase commit: `Session(twophase=True)` over several engines, in threads. It keeps no log.

Pools and sessions have their defaults (a reset by ROLLBACK on return among them), but for the size.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from nodoubt.url import parse_url

from ..task import ADD, Task
from . import Contender

DIALECTS = {"postgres": "postgresql+psycopg", "mariadb": "mariadb+pymysql"}
STATEMENT = sqlalchemy.text(f"{ADD}:id")


class TwoPhase(Contender):
    """A session for each transaction, and the same statements as everybody's."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.engines = []
        for url in task.urls:
            kind = parse_url(url).kind
            address = f"{DIALECTS[kind]}{url[url.index('://') :]}"
            self.engines.append(sqlalchemy.create_engine(address, pool_size=task.connections, max_overflow=0))

    def open(self) -> None:
        """Engines connect when they are first used."""

    def transact(self, client: int) -> None:
        with Session(twophase=True) as session:
            for engine in self.engines:
                for row in self.rows(client):
                    session.execute(STATEMENT, {"id": row}, bind_arguments={"bind": engine})
            session.commit()

    def close(self) -> None:
        for engine in self.engines:
            engine.dispose()


class Objects(TwoPhase):
    """As its documentation has it: mapped objects, loaded, changed, flushed by the commit. A SELECT more for each."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.kinds: list[Any] = [mapped() for _ in task.urls]
        self.binds: dict[Any, Any] = dict(zip(self.kinds, self.engines, strict=True))

    def transact(self, client: int) -> None:
        with Session(twophase=True, binds=self.binds) as session:
            for kind in self.kinds:
                for row in self.rows(client):
                    session.get_one(kind, row).balance += 1
            session.commit()


def mapped() -> type[DeclarativeBase]:
    """The accounts of one database, as a class of their own."""

    class Base(DeclarativeBase):
        pass

    class Account(Base):
        __tablename__ = "accounts"
        id: Mapped[int] = mapped_column(primary_key=True)
        balance: Mapped[int]

    return Account
