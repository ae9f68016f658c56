"""`nnfleet ui`: where the pictures, curves and tables are."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.output import print_json, say
from orchestrator.cli.parameters import AsJson, Cluster

if TYPE_CHECKING:
    from orchestrator.run.status import RunStatus


def ui(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="A run, a model or a dataset; default: the newest dataset.", show_default=False)
    ] = None,
    cluster: Cluster = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the MLflow page in a browser.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print a link into MLflow for each question, and that of the Ray dashboard. With no cluster named, here or by Ray's own variables:
    of the local one, starting it if need be.
    """
    from orchestrator import api
    from orchestrator.cluster.discovery import named_by_environment

    services = api.up() if cluster is None and api.is_local() else None
    seen = api.snapshot(services.ray_address if services else cluster)
    links = links_of([*seen.statuses, *seen.stored], run, services.mlflow_uri if services else "")
    links["dashboard"] = services.ray_address if services else cluster or named_by_environment()
    if as_json:
        print_json(links)
    else:
        token = f"the token in {services.token_file}" if services else "its token"
        for line in lines_of(links, token):
            say(line)
        if services is None and links["mlflow"]:
            say("MLflow's address is the one that the cluster's head knows; from elsewhere it may need a tunnel.")
    if open_browser and (wanted := [*([links["run"]] if "run" in links else []), *links["mlflow"]]):
        import webbrowser

        webbrowser.open(wanted[0])


def links_of(statuses: Sequence["RunStatus"], run: str | None, server: str) -> dict[str, Any]:
    """The links into MLflow for one experiment: that of the runs called `run`, else the one in which a run has changed last. Pure.

    Raises ConfigError for an unknown name, and for one whose runs have no page yet.
    """
    from orchestrator.errors import ConfigError
    from orchestrator.run.status import match_all
    from orchestrator.tracking.saved_views import pages_of

    named = match_all([run], statuses) if run is not None else statuses
    shown = sorted((item for item in named if item.mlflow_url), key=lambda item: -item.since_unix)
    if run is not None and not shown:
        raise ConfigError(f"run: {named[0].address} has no page in MLflow yet (it is {named[0].state}). Ask again once it runs.")
    beside = [item for item in statuses if item.mlflow_url] if len(named) == 1 else shown[1:]  # a run alone is compared with its like
    of_experiment = _of_one_experiment([*shown[:1], *(item for item in beside if item not in shown[:1])])
    pages = pages_of([item.mlflow_url for item in of_experiment], "" if shown else server)
    datasets = dict.fromkeys(filter(None, map(dataset_of, of_experiment)))
    others = dict.fromkeys(dataset_of(item) for item in statuses if item.mlflow_url and dataset_of(item) not in datasets)
    links: dict[str, Any] = {
        "datasets": list(datasets),
        "other_datasets": list(others),
        "mlflow": [link for page in pages for link in page.overview],
        "questions": {name: link for page in pages for number in page.experiments for name, link in page.answers(number).items()},
        "comparison": [page.comparison for page in pages if page.comparison],
    }
    return links | ({"run": shown[0].mlflow_url} if run is not None and len(named) == 1 else {})


def _of_one_experiment(shown: Sequence["RunStatus"]) -> list["RunStatus"]:
    """Those in the MLflow experiment of the first, in the order in which names sort."""
    if not shown:
        return []
    place = shown[0].mlflow_url.split("/runs/")[0]
    return sorted((item for item in shown if item.mlflow_url.split("/runs/")[0] == place), key=lambda item: item.address)


def dataset_of(status: "RunStatus") -> str:
    """The dataset's folder name."""
    return status.run_folder.parent.parent.name


def lines_of(links: dict[str, Any], token: str) -> list[str]:
    """What is printed of links."""
    rows = {**links["questions"], **dict.fromkeys(["Runs side by side"], "".join(links["comparison"][:1]))}
    rows |= {"This run": links.get("run", "")}
    if not links["questions"]:
        rows["MLflow"] = (links["mlflow"] or ["no run of this cluster has a page in MLflow yet"])[0]
    rows["Ray dashboard"] = f"{links['dashboard']}  (asks for {token})"
    width = max(map(len, rows))
    lines = [f"{name:<{width}}  {link}" for name, link in rows.items() if link]
    head = [f"{', '.join(links['datasets'])} in MLflow:"] if links["datasets"] else []
    others = [f"Other datasets: {', '.join(links['other_datasets'])} (nnfleet ui DATASET)"] if links["other_datasets"] else []
    return [*head, *lines, *others]
