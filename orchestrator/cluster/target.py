"""Which cluster a verb means: the named one, else the one that Ray's own variables name, else the local services."""

from dataclasses import dataclass

from orchestrator.cluster import local_services
from orchestrator.cluster.discovery import AUTO, cluster_of_this_machine, named_by_environment
from orchestrator.cluster.home import Home
from orchestrator.cluster.jobs import Jobs
from orchestrator.cluster.local_services import Services
from trainers.errors import ClusterError


@dataclass(frozen=True)
class Target:
    """One connection to the cluster that a verb means."""

    reached: Jobs | None
    """None: no cluster is named, and the local services do not run."""
    local: Services | None
    """The local services, if they are the cluster that is meant and run."""

    @property
    def is_here(self) -> bool:
        """True if this machine is meant, whether or not its services run."""
        return self.local is not None or self.reached is None

    @property
    def jobs(self) -> Jobs:
        """Its job server. Raises ClusterError if none runs."""
        if self.reached is None:
            raise ClusterError("cluster: none is named and no local one runs. Name one (--cluster), or submit something: that starts it.")
        return self.reached


def reach(cluster: str | None = None, *, starts: bool = False) -> Target:
    """Connect to `cluster`, else to the one that the environment names, else to the local services; with `starts` these are started.

    Raises ClusterError when what is named cannot be reached, ConfigError for what is no address.
    """
    named = cluster or named_by_environment()
    local = _running_here() if named is not None else local_services.up() if starts else local_services.running()
    if named == AUTO:
        named = cluster_of_this_machine()
        named = None if local is not None and named == local_services.control_store(Home.default()) else named
    if named is not None and (local is None or named.rstrip("/") != local.ray_address):
        return Target(Jobs(named), None)
    return Target(Jobs(named or local.ray_address, local.token) if local is not None else None, local)


def is_idle(cluster: str | None = None) -> bool:
    """True where `reach` would have to start the local services: what can be refused without them is refused before."""
    return (cluster or named_by_environment()) is None and local_services.running() is None


def _running_here() -> Services | None:
    """The local services where another cluster may be meant: those of another host are none of this machine's."""
    try:
        return local_services.running()
    except ClusterError:
        return None


def outage_of(local: Services | None) -> str:
    """A sentence if the MLflow server of the local services has died; else nothing."""
    if local is None or local_services.tracking_answers(local):
        return ""
    return (
        "MLflow is down: what it lacks waits in the run folders. `nnfleet up` starts it again, "
        "`nnfleet sync` delivers what no job is left to deliver."
    )
