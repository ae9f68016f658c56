"""Which checkpoints MLflow holds of a run, as the run's tags say. Nothing here speaks to MLflow."""

import logging
from collections.abc import Mapping

from pydantic import Field

from trainers.contract.commits import Manifest
from trainers.contract.run_spec import Frozen, WeightsName

log = logging.getLogger(__name__)


class Published(Frozen):
    """A checkpoint in MLflow's artifacts; as JSON in a tag of the run it is the commit of the upload."""

    directory: str = Field(pattern=r"^checkpoints/(best|final)/e[0-9]+-[0-9a-f]{8}$")
    """Artifact path of the directory that holds the checkpoint and manifest.json; checked, as whoever may write tags chooses it."""
    manifest: Manifest

    @property
    def file(self) -> str:
        """Artifact path of the checkpoint itself."""
        return f"{self.directory}/checkpoint_{self.manifest.checkpoint}.pth"


def published_tag(name: WeightsName) -> str:
    """Tag whose value is the commit of the published checkpoint."""
    return f"nnfleet.{name}"


def published_in(tags: Mapping[str, str], name: WeightsName) -> Published | None:
    """The best or final checkpoint that the tags of a run name, or None."""
    value = tags.get(published_tag(name))
    if value is None:
        return None
    try:
        record = Published.model_validate_json(value)
        if record.manifest.checkpoint != name or not record.directory.startswith(f"checkpoints/{name}/"):
            raise ValueError(f"names another checkpoint than {name}")
        return record
    except ValueError:
        log.warning("the tag %s of a run is not readable and is ignored: %.200s", published_tag(name), value)
        return None
