"""Bad and hostile experiment files, each with the error that answers it."""

from pathlib import Path

import pytest

from orchestrator.errors import ConfigError
from orchestrator.experiment.model import load_experiment, parse_experiment
from tests.hostile import Place, Row, check

MINIMAL = "dataset: 17\nconfigurations: 3d_fullres\n"
BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
PLAIN = "must consist of letters, digits and _.+-"


def _experiment(place: Place, text: str | bytes) -> object:
    return load_experiment(place.write("e.yaml", text))


def _nested(levels: int) -> str:
    return "[" * levels + "]" * levels


ROWS: tuple[Row, ...] = (
    Row("experiment", "empty file", lambda p: _experiment(p, ""), ConfigError, ("e.yaml: the file is empty", "needs at least `dataset`")),
    Row("experiment", "not UTF-8", lambda p: _experiment(p, b"\xff\xfe\x00"), ConfigError, ("cannot be read as UTF-8", "Name a YAML file")),
    Row("experiment", "NUL byte", lambda p: _experiment(p, "a: \0"), ConfigError, ("not valid YAML", "Correct the file")),
    Row(
        "experiment",
        "a Python object",
        lambda p: _experiment(p, "a: !!python/object/apply:os.system [id]"),
        ConfigError,
        ("e.yaml:1", "could not determine a constructor"),
    ),
    Row(
        "experiment", "a billion laughs", lambda p: _experiment(p, BOMB), ConfigError, ("aliases stand for 1e+09 values", "at most 100000")
    ),
    Row(
        "experiment", "an alias within itself", lambda p: _experiment(p, "dataset: &a [*a]"), ConfigError, ("aliases stand for inf values",)
    ),
    Row(
        "experiment",
        "10000 nested lists",
        lambda p: _experiment(p, f"a: {_nested(10000)}"),
        ConfigError,
        ("more than 100 brackets are open within each other",),
    ),
    Row("experiment", "two megabytes", lambda p: _experiment(p, "#" * 2_000_000), ConfigError, ("longer than 200000 characters",)),
    Row("experiment", "a device in place of a file", lambda p: load_experiment("/dev/zero"), ConfigError, ("/dev/zero", "longer than")),
    Row(
        "experiment",
        "a number of 5000 digits",
        lambda p: _experiment(p, f"dataset: {'9' * 5000}"),
        ConfigError,
        ("e.yaml:1", "at most 20 digits"),
    ),
    Row(
        "experiment",
        "endless epochs",
        lambda p: _experiment(p, MINIMAL + "initial_lr: .nan"),
        ConfigError,
        ("e.yaml:3: initial_lr: got nan",),
    ),
    Row(
        "experiment",
        "never to save",
        lambda p: _experiment(p, MINIMAL + "checkpoint: {every_minutes: .inf}"),
        ConfigError,
        ("checkpoint.every_minutes: inf", "finite"),
    ),
    Row(
        "experiment",
        "a million runs",
        lambda p: _experiment(p, MINIMAL + f"folds: {[*range(999)]}\nseeds: {[*range(999)]}"),
        ConfigError,
        ("asks for 998001 runs", "at most 10000"),
    ),
    Row(
        "experiment",
        "20000 folds",
        lambda p: _experiment(p, MINIMAL + f"folds: {[*range(20000)]}"),
        ConfigError,
        ("folds: got", "20000 entries"),
    ),
    Row(
        "experiment",
        "a password in the server's address",
        lambda p: _experiment(p, MINIMAL + "tracking: {uri: 'http://me:secret@h'}"),
        ConfigError,
        ("tracking.uri", "it holds a user, a password", "export MLFLOW_TRACKING_USERNAME"),
    ),
    Row(
        "experiment",
        "a folder with a newline",
        lambda p: _experiment(p, MINIMAL + 'nnUNet_results: "/a\\nb"'),
        ConfigError,
        ("nnUNet_results: got", "printable text on one line"),
    ),
    Row(
        "experiment",
        "the home of nobody",
        lambda p: parse_experiment(MINIMAL + "nnUNet_results: ~no_one_here/x\nnnUNet_preprocessed: /x").with_folders_resolved(),
        ConfigError,
        ("~no_one_here/x", "does not know that user", "Write the whole path"),
    ),
    Row(
        "name",
        "configuration ..",
        lambda p: _experiment(p, "dataset: 17\nconfigurations: ../../etc"),
        ConfigError,
        ("e.yaml:2: configurations.0: got '../../etc'", PLAIN),
    ),
    Row(
        "name",
        "plans with a slash",
        lambda p: _experiment(p, MINIMAL + "plans: /etc/passwd"),
        ConfigError,
        ("plans.0: got '/etc/passwd'", PLAIN),
    ),
    Row(
        "name",
        "a shell command as plans",
        lambda p: _experiment(p, MINIMAL + "plans: \"P'; rm -rf ~; '\""),
        ConfigError,
        ("plans.0", PLAIN),
    ),
    Row(
        "name",
        "an option as configuration",
        lambda p: _experiment(p, "dataset: 17\nconfigurations: --now"),
        ConfigError,
        ("got '--now'", "begin with a letter"),
    ),
    Row(
        "name",
        "a newline in a configuration",
        lambda p: _experiment(p, 'dataset: 17\nconfigurations: "2d\\nx"'),
        ConfigError,
        ("got '2d\\nx'", PLAIN),
    ),
    Row(
        "name",
        "a slash from another script",
        lambda p: _experiment(p, 'dataset: 17\nconfigurations: "a\\uFF0Fb"'),
        ConfigError,
        ("got 'a\uff0fb'", PLAIN),
    ),
    Row(
        "name",
        "text that is shown backwards",
        lambda p: _experiment(p, 'dataset: 17\nconfigurations: "a\\u202Eb"'),
        ConfigError,
        ("got 'a\\u202eb'", PLAIN),
    ),
    Row(
        "name",
        "a name of 300 letters",
        lambda p: _experiment(p, f"dataset: 17\nconfigurations: {'a' * 300}"),
        ConfigError,
        ("longer than 80 bytes",),
    ),
    Row(
        "name",
        "dataset with ..",
        lambda p: _experiment(p, "dataset: Dataset017_/../../x\nconfigurations: 2d"),
        ConfigError,
        ("e.yaml:1: dataset: got", PLAIN),
    ),
    Row(
        "name",
        "name of the experiment with an escape",
        lambda p: _experiment(p, MINIMAL + 'name: "\\e[2J"'),
        ConfigError,
        ("name: got '\\x1b[2J'", "printable text"),
    ),
)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_hostile_input_is_answered_by_its_error(tmp_path: Path, row: Row) -> None:
    check(row, tmp_path)
