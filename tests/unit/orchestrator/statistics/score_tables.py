"""Tables of scores for the tests of `orchestrator/compare/`."""

from collections.abc import Mapping, Sequence

from orchestrator.statistics.table import DICE, CaseScores, Score, ScoreTable, table_of

NAN = float("nan")


def table(rows: Mapping[str, Sequence[float]], patients: str = "", metric: str = "dice", class_name: str = "liver") -> ScoreTable:
    """One metric of one class: model -> its score in cases 0, 1, ...; a letter of `patients` per case, else each case is one."""
    return table_of(records(rows, patients, metric, class_name))


def records(rows: Mapping[str, Sequence[float]], patients: str = "", metric: str = "dice", class_name: str = "liver") -> list[Score]:
    return [
        Score(model, patients[case] if patients else f"case{case}", f"case{case}", class_name, metric, value)
        for model, values in rows.items()
        for case, value in enumerate(values)
    ]


def dice(rows: Mapping[str, Sequence[float]], patients: str = "") -> CaseScores:
    """Dice of one class, in points."""
    return table(rows, patients).case_scores(DICE)
