"""The page's batch job as it stands there, in Python: to see what becomes of it. The one to copy is `job.py`.

The verbs, their order and their names are the page's; only the time limit is ours, for it has none.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from nodoubt import Coordinator, NoDoubtError

TABLE = (
    "create table batch_jobs (job_id varchar(80) primary key, status varchar(20) not null, total_items int not null, "
    "processed_items int not null, error_message varchar(200))"
)
DONE = "create table done (item int not null)"  # what the items' processing does: outside the transaction, as there


class BatchJobOrchestrator:
    """`executeJob` and what it calls."""

    def __init__(self, db: Coordinator, job_id: str, *, timeout: float) -> None:
        self.db, self.timeout = db, timeout
        self.job_id = f"batch_{job_id}_{time.time_ns()}"
        self.processing_started = False

    def execute_job(self, items: Sequence[int], batch_size: int) -> None:
        try:
            with self.db.begin_distributed(self.job_id) as tx:
                row = {"job_id": self.job_id, "status": "initializing", "total_items": len(items), "processed_items": 0}
                tx.insert_into("batch_jobs").values(row).execute()
            self.processing_started = True
            for at in range(0, len(items), batch_size):
                batch = items[at : at + batch_size]
                with self.db.transaction() as tx:
                    tx.insert_into("done").values([{"item": item} for item in batch]).execute()
                self.update(f"progress_{at}", processed_items=at + len(batch))
            self.update("complete", status="completed")
            self.db.commit_distributed(self.job_id)
        except NoDoubtError as error:
            self.handle_job_failure(error)
            raise

    def update(self, what: str, **values: object) -> None:
        name = f"{self.job_id}_{what}"
        with self.db.begin_distributed(name, timeout=self.timeout) as tx:
            tx.update_table("batch_jobs").set(values).where({"job_id": self.job_id}).execute()
        self.db.commit_distributed(name)

    def handle_job_failure(self, error: Exception) -> None:
        if self.processing_started:
            try:
                self.update("failed", status="failed", error_message=str(error)[:200])
            except NoDoubtError as failure:
                print(f"Failed to update job status: {type(failure).__name__}")
            self.db.rollback_distributed(self.job_id)
