"""The run folder that the version before wrote, laid out where a test wants it."""

from pathlib import Path

from trainers.contract.run_folder import RunFolder

WRITTEN = Path(__file__).parent / "old_run_folder"
FILES = [str(path.relative_to(WRITTEN / "nnfleet")) for path in sorted((WRITTEN / "nnfleet").rglob("*.json"))]
RUN_KEY = "d901-toy_3d-nnUNetTrainer-nnUNetPlans-f0-s0-0b43933e"


def old_run_folder(root: Path) -> RunFolder:
    """Its files below `root`, as they lay below the folder of its data and results; without tensors."""
    folder = RunFolder(root / "nnUNet_results" / "Dataset901_ToyLabels1" / "nnUNetTrainer__nnUNetPlans__toy_3d" / "fold_0")
    for name in FILES:
        target = folder.own / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text((WRITTEN / "nnfleet" / name).read_text().replace("{root}", str(root)))
    return folder
