"""`nnfleet ui`: where the pictures, curves and tables are."""

from typing import Annotated

import typer

from orchestrator.cli.output import print_json, say
from orchestrator.cli.parameters import AsJson


def ui(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run, for a link to its page.", show_default=False)] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the MLflow page in a browser.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print the links of MLflow and of the Ray dashboard of the local cluster, starting both if need be."""
    from orchestrator import api

    services = api.up()
    links = {"mlflow": f"{services.mlflow_uri}/#/experiments", "dashboard": services.ray_address}
    if run is not None:
        links["run"] = run_link(run)
    if as_json:
        print_json(links)
    else:
        say(f"MLflow         {links['mlflow']}")
        if "run" in links:
            say(f"Run            {links['run']}")
        say(f"Ray dashboard  {links['dashboard']}  (asks for the token in {services.token_file})")
    if open_browser:
        import webbrowser

        webbrowser.open(links.get("run", links["mlflow"]))


def run_link(run: str) -> str:
    """The MLflow page of a run of the local cluster. Raises ConfigError for an unknown run or one without a page."""
    from orchestrator import api
    from orchestrator.errors import ConfigError
    from orchestrator.run_status import match

    found = match(run, api.status())
    if not found.mlflow_url:
        raise ConfigError(f"run: {found.address} has no page in MLflow yet (it is {found.state}). Ask again once it runs.")
    return found.mlflow_url
