"""nodoubt: transactions over several databases that end one way everywhere.

    from nodoubt import Coordinator

    with Coordinator({"orders": "postgresql://…/orders", "stock": "mariadb://…/stock"}) as db:
        with db.transaction("order-42") as tx:
            tx["orders"].execute("insert into orders values (42)")
            tx["stock"].execute("update products set stock = stock - 1 where id = 7")

The public names, nothing else. Importing this package imports no database driver.
"""

from .coordinator import AsyncCoordinator, Coordinator
from .engine.context import Settings
from .engine.questions import State, TransactionRecord
from .engine.reaper import ReapReport
from .engine.sweep import SweepReport
from .engine.verbs import Result
from .errors import (
    BranchDoomed,
    ClosedTransaction,
    ConfirmationConflict,
    DuplicateTransaction,
    Heuristic,
    InDoubt,
    InvalidName,
    JobLost,
    JobTaken,
    JournalUnavailable,
    KeyInFlight,
    KeyReused,
    LineageBroken,
    MissingExtra,
    NoDoubtError,
    NotAllowed,
    NotAsked,
    NotReady,
    OutcomeConflict,
    PoolExhausted,
    ResourceRefused,
    ResourceUnavailable,
    SchemaMismatch,
    StepInDoubt,
    StepInFlight,
    StepRefused,
    StepTimedOut,
    StillBeginning,
    TransactionAborted,
    TransactionDoomed,
    UnknownJob,
    UnknownTransaction,
    UnreadableRecord,
    UsageError,
)
from .jobs.records import JobRecord, JobState
from .ports import Notice, Observer, Reply
from .protocol.records import Call, CallState, Confirmation, Readiness, Unreadable
from .query import sql
from .steps import IdempotencyKey, StepContext, compensation, step
from .steps.undoing import Undoing
from .transaction import AsyncTransaction, Transaction
from .xid import transaction_id

__version__ = "0.1.0"

__all__ = [
    "AsyncCoordinator",
    "AsyncTransaction",
    "BranchDoomed",
    "Call",
    "CallState",
    "ClosedTransaction",
    "Confirmation",
    "ConfirmationConflict",
    "Coordinator",
    "DuplicateTransaction",
    "Heuristic",
    "IdempotencyKey",
    "InDoubt",
    "InvalidName",
    "JobLost",
    "JobRecord",
    "JobState",
    "JobTaken",
    "JournalUnavailable",
    "KeyInFlight",
    "KeyReused",
    "LineageBroken",
    "MissingExtra",
    "NoDoubtError",
    "NotAllowed",
    "NotAsked",
    "NotReady",
    "Notice",
    "Observer",
    "OutcomeConflict",
    "PoolExhausted",
    "Readiness",
    "ReapReport",
    "Reply",
    "ResourceRefused",
    "ResourceUnavailable",
    "Result",
    "SchemaMismatch",
    "Settings",
    "State",
    "StepContext",
    "StepInDoubt",
    "StepInFlight",
    "StepRefused",
    "StepTimedOut",
    "StillBeginning",
    "SweepReport",
    "Transaction",
    "TransactionAborted",
    "TransactionDoomed",
    "TransactionRecord",
    "Undoing",
    "UnknownJob",
    "UnknownTransaction",
    "Unreadable",
    "UnreadableRecord",
    "UsageError",
    "compensation",
    "sql",
    "step",
    "transaction_id",
]
