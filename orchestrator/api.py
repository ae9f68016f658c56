"""The verbs of nnfleet for Python; the command line only renders what they return.

Where a verb takes `cluster`, None means: the cluster that Ray's own variables name (RAY_API_SERVER_ADDRESS, then RAY_ADDRESS), else the
local services. Every verb may raise ClusterError. `orchestrator/run/names.py` holds how a `run` is named; ConfigError lists the known ones.
"""

from orchestrator.verbs.maintenance import (
    drill,
    free,
    garbage,
    removable,
    remove,
    sync,
)
from orchestrator.verbs.models import (
    compare,
    diff,
    evaluate,
    export,
    import_folder,
    predict,
    publish_report,
    write_report,
)
from orchestrator.verbs.services import (
    down,
    is_local,
    this_machine,
    up,
)
from orchestrator.verbs.steering import (
    place,
    stop,
    validate,
)
from orchestrator.verbs.submitting import (
    Submission,
    plan,
    resume,
    submit,
    wait,
    withdraw,
)
from orchestrator.verbs.watching import (
    Look,
    Snapshot,
    local_runs,
    logs,
    looks,
    queue,
    snapshot,
    status,
    stored,
    tracking_outage,
)

__all__ = [
    "Look",
    "Snapshot",
    "Submission",
    "compare",
    "diff",
    "down",
    "drill",
    "evaluate",
    "export",
    "free",
    "garbage",
    "import_folder",
    "is_local",
    "local_runs",
    "logs",
    "looks",
    "place",
    "plan",
    "predict",
    "publish_report",
    "queue",
    "removable",
    "remove",
    "resume",
    "snapshot",
    "status",
    "stop",
    "stored",
    "submit",
    "sync",
    "this_machine",
    "tracking_outage",
    "up",
    "validate",
    "wait",
    "withdraw",
    "write_report",
]
