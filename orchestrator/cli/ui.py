"""`nnfleet ui`: where the pictures, curves and tables are."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.output import print_json, say
from orchestrator.cli.parameters import AsJson, Cluster

if TYPE_CHECKING:
    from orchestrator.run.status import RunStatus


def ui(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run, for a link to its page.", show_default=False)] = None,
    cluster: Cluster = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the MLflow page in a browser.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print the links of MLflow and of the Ray dashboard. With no cluster named: of the local one, starting it if need be."""
    from orchestrator import api
    from orchestrator.tracking.saved_views import pages_of

    services = None if cluster else api.up()
    seen = api.snapshot(services.ray_address if services else cluster)
    statuses = [*seen.statuses, *seen.stored]
    pages = pages_of([item.mlflow_url for item in statuses], services.mlflow_uri if services else "")
    links: dict[str, Any] = {
        "mlflow": [link for page in pages for link in page.overview],
        "comparison": [page.comparison for page in pages if page.comparison],
        "dashboard": services.ray_address if services else cluster,
    }
    if run is not None:
        links["run"] = run_link(run, statuses)
    if as_json:
        print_json(links)
    else:
        for link in links["mlflow"] or ["no run of this cluster has a page in MLflow yet"]:
            say(f"MLflow         {link}")
        for link in links["comparison"]:
            say(f"Side by side   {link}")
        if "run" in links:
            say(f"Run            {links['run']}")
        token = f"the token in {services.token_file}" if services else "its token"
        say(f"Ray dashboard  {links['dashboard']}  (asks for {token})")
        if cluster and links["mlflow"]:
            say("MLflow's address is the one that the cluster's head knows; from elsewhere it may need a tunnel.")
    if open_browser and (wanted := [*([links["run"]] if run else []), *links["mlflow"]]):
        import webbrowser

        webbrowser.open(wanted[0])


def run_link(run: str, statuses: list["RunStatus"]) -> str:
    """The MLflow page of a run. Raises ConfigError for an unknown run or one without a page."""
    from orchestrator.errors import ConfigError
    from orchestrator.run.status import match

    found = match(run, statuses)
    if not found.mlflow_url:
        raise ConfigError(f"run: {found.address} has no page in MLflow yet (it is {found.state}). Ask again once it runs.")
    return found.mlflow_url
