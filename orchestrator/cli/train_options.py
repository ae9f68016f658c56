"""Options and arguments of `nnfleet train`, most of them by nnU-Net's names."""

from pathlib import Path
from typing import Annotated

import typer

Dataset = Annotated[str, typer.Argument(metavar="DATASET", help="17, 017 or Dataset017_X.", show_default=False)]
Configuration = Annotated[str, typer.Argument(metavar="CONFIGURATION", help="Such as 3d_fullres.", show_default=False)]
FoldName = Annotated[str, typer.Argument(metavar="FOLD", help="0 to 4, several as 0-4, or all.", show_default=False)]
Trainer = Annotated[str, typer.Option("-tr", "--trainer", help="nnUNetTrainer, nnUNetTrainerDA5, ...")]
PlansName = Annotated[str, typer.Option("-p", "--plans", help="Name of the plans.")]
Epochs = Annotated[int | None, typer.Option("--epochs", min=1, help="Default: nnU-Net's 1000.", show_default=False)]
Iterations = Annotated[
    int | None, typer.Option("--iterations", min=1, help="Training steps per epoch. Default: nnU-Net's 250.", show_default=False)
]
ValIterations = Annotated[
    int | None, typer.Option("--val-iterations", min=1, help="Validation batches per epoch. Default: nnU-Net's 50.", show_default=False)
]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Default: 0.", show_default=False)]
Variant = Annotated[
    str | None, typer.Option("--variant", metavar="NAME", help="Train beside the usual settings, in a model folder of its own.")
]
Name = Annotated[str | None, typer.Option("--name", help="Of the experiment in lists.", show_default=False)]
Weights = Annotated[
    Path | None,
    typer.Option(
        "-pretrained_weights",
        "--pretrained-weights",
        metavar="FILE",
        help="Begin with the weights of this checkpoint, or of a run, but for the segmentation layers.",
        show_default=False,
    ),
]
Npz = Annotated[bool, typer.Option("--npz", help="The full validation keeps probabilities, for ensembles.")]
Candidates = Annotated[
    int | None,
    typer.Option(
        "--candidates",
        metavar="K",
        min=0,
        max=10,
        help="Keep the K best epochs by pseudo-Dice, and validate all of them fully. Default: 0.",
        show_default=False,
    ),
]
Images = Annotated[
    bool | None, typer.Option("--images/--no-images", help="Send pictures of validation cases to MLflow.", show_default=False)
]
Compiles = Annotated[
    bool | None, typer.Option("--compile/--no-compile", help="Compile the network on GPUs. Default: yes.", show_default=False)
]
OnlyValidates = Annotated[bool, typer.Option("--val", help="Only validate the trained run again.")]
ValBest = Annotated[bool, typer.Option("--val_best", help="With --val: also a stopped run, by its best checkpoint.")]
Continues = Annotated[bool, typer.Option("--c", help="Nothing: the same command always continues.")]
NoCheckpoints = Annotated[bool, typer.Option("--disable_checkpointing", help="Nothing: checkpoints are kept.")]
NumWorkers = Annotated[int | None, typer.Option("--num-workers", "--num-gpus", "-num_gpus", min=1, help="Workers, each with a GPU.")]
Device = Annotated[str | None, typer.Option("-device", "--device", help="cuda or cpu.", show_default=False)]
Cpu = Annotated[bool, typer.Option("--cpu", help="Run on CPUs instead of GPUs.")]
Cpus = Annotated[
    int | None, typer.Option("--cpus", min=1, help="CPU cores per worker, data loading included. Default: 8, or what this machine has.")
]
