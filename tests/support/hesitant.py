"""The flow of the generate-part deployment for tests: one run of it stops at the worst moment, to be killed there.

Where a file `hesitate` lies beside the run folder, the run that takes it stops while it writes its second part, and
says so in the file `stopped`.
"""

import os
import time
from pathlib import Path
from typing import Any

from prefect import flow

from latebloom.data.synthetic import folder as synthetic_folder
from latebloom.flows.runners import parts as runners


@flow(name="generate-part")
def generate_part(run: str, numbers: list[int], limit: str = "") -> None:
    """What flows/server/deployed.py does, and the stop."""
    try:
        (Path(run).parent / "hesitate").unlink()
    except FileNotFoundError:
        pass
    else:
        _stop_at_second(Path(run).parent / "stopped")
    runners.make_numbered(run, numbers, limit)


def _stop_at_second(mark: Path) -> None:
    write_table, written = synthetic_folder.pq.write_table, []

    def second_stops(*args: Any, **kwargs: Any) -> None:
        write_table(*args, **kwargs)
        written.append(1)
        if len(written) == 2:  # it lies under its temporary name, whole, and is not renamed yet
            mark.with_suffix(".tmp").write_text(str(os.getpid()))
            mark.with_suffix(".tmp").rename(mark)
            time.sleep(3600)

    synthetic_folder.pq.write_table = second_stops
