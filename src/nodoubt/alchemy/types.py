"""SQLAlchemy's classes that stand in public signatures, for type checkers alone: other rooms name them by this one."""

from __future__ import annotations

from sqlalchemy import Connection, Engine, Executable
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

__all__ = [
    "AsyncConnection",
    "AsyncEngine",
    "AsyncSession",
    "Connection",
    "Engine",
    "Executable",
    "Session",
    "async_sessionmaker",
    "sessionmaker",
]
