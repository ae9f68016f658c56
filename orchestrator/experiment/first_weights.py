"""What the runs of an experiment begin with: a checkpoint file, or the final weights of a run of ours below nnUNet_results."""

import re
from collections.abc import Iterator
from pathlib import Path

from orchestrator.errors import ConfigError, DataError
from orchestrator.run.below import run_folders_below
from orchestrator.run.names import Names, resolve
from trainers.contract.names import Fold
from trainers.contract.plans import Split
from trainers.contract.pretrained import pretrained_from
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import PretrainedWeights, RunSpec

_ADDRESS = re.compile(r"(Dataset)?\d+(_[^/]*)?/[^/]+/[^/]+(/(fold_)?(\d+|all))?", re.ASCII)
_RUN_KEY = re.compile(r"d\d+-.+-f(\d+|all)-s\d+.*-[0-9a-f]{8}", re.ASCII)


def names_run(value: Path | str) -> bool:
    """True for the address or key of a run, or the address of a model; a file's path ends in .pth, or begins with / or ~."""
    text = str(value)
    return not text.endswith(".pth") and bool(_ADDRESS.fullmatch(text) or _RUN_KEY.fullmatch(text))


class FirstWeights:
    """Each file is read once, one that the experiment names at once. `named`: as it names it; `results`: nnUNet_results."""

    def __init__(self, named: Path | None, results: Path) -> None:
        self.named = named
        self._results = results
        self._runs: list[tuple[RunFolder, RunSpec]] | None = None
        self._read: dict[Path, PretrainedWeights] = {}
        if named is not None and not names_run(named):
            self._file(named)

    def of(self, dataset: str, fold: Fold, split: Split) -> PretrainedWeights | None:
        """What a run of this fold begins with; of a model that is named without its fold, the same fold's weights.

        Raises ConfigError where there are none, and for weights that have been trained on cases which this fold validates, by that run or
        by those before it whose weights it began with; StorageError.
        """
        if self.named is None:
            return None
        if not names_run(self.named):
            return self._file(self.named)
        folder, spec = self._run(str(self.named), fold)
        for trained in self._chain(spec):
            seen = sorted({*trained.train_cases} & {*split.val}) if trained.dataset == dataset and fold != "all" else []
            if seen:
                begun = "" if trained is spec else f", and {spec.address} began with its weights"
                raise ConfigError(
                    f"pretrained_weights: {trained.address} has been trained on {len(seen)} of the {len(split.val)} validation cases of "
                    f"fold {fold}, first {seen[0]}{begun}, so its scores would be of known cases. Name the run of the same fold, or the "
                    f"model alone ({spec.model}), of which each fold then begins with the same fold."
                )
        file = folder.checkpoint("final")
        if not file.is_file():
            raise ConfigError(
                f"pretrained_weights: {spec.address} has no final checkpoint ({file}): it has not been trained to its end. Wait for it, "
                "resume it, or name a checkpoint's file."
            )
        return self._file(file).model_copy(update={"run": spec.run_key})

    def _chain(self, spec: RunSpec) -> Iterator[RunSpec]:
        """A run, the run whose weights it began with, and so on, as far as they are still there."""
        known = {found.run_key: found for _, found in self._known()}
        passed: set[str] = set()
        link: RunSpec | None = spec
        while link is not None and link.run_key not in passed:
            yield link
            passed.add(link.run_key)
            link = known.get(link.pretrained_weights.run) if link.pretrained_weights else None

    def _file(self, file: Path) -> PretrainedWeights:
        if file not in self._read:
            self._read[file] = pretrained_from(file)
        return self._read[file]

    def _run(self, name: str, fold: Fold) -> tuple[RunFolder, RunSpec]:
        runs = self._known()
        place = f"below {self._results}"
        try:
            found = [runs[i] for i in resolve(name, [Names(spec.run_key, spec.address, "", str(at.root)) for at, spec in runs], place)]
        except ConfigError as err:
            raise ConfigError(f"pretrained_weights: {err}") from err
        same_fold = [run for run in found if run[1].fold == fold] if len(found) > 1 else found
        if len(same_fold) == 1:
            return same_fold[0]
        listed = ", ".join(spec.address for _, spec in (same_fold or found)[:5])
        what = f"{len(same_fold)} runs of fold {fold}" if same_fold else f"no run of fold {fold}, but"
        raise ConfigError(f"pretrained_weights: {name} means {what} {place}: {listed}. Name one run by its address or key.")

    def _known(self) -> list[tuple[RunFolder, RunSpec]]:
        if self._runs is None:
            self._runs = []
            for folder in run_folders_below(self._results):
                try:
                    self._runs.append((folder, folder.spec()))
                except DataError:
                    continue  # it has no name, so that nobody can mean it
        return self._runs
