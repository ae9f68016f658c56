"""Whether the folds of splits_final.json name cases, each once. Pure."""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping

from orchestrator.dataset.problems import MAX_LISTED, listed
from orchestrator.errors import DataError
from trainers.contract.names import Fold
from trainers.contract.plans import Split


def check_folds(folds: Mapping[Fold, Split], cases: Collection[str], where: str) -> None:
    """Raise DataError for ids that name files of a preprocessed case in place of the case, or for a case that a list holds twice.

    Ids of cases that are not there at all pass. A case in both parts of a fold does, too, as in nnU-Net: the plan warns of it.
    """
    known = frozenset(cases)
    ids = dict.fromkeys(case for split in folds.values() for part in (split.train, split.val) for case in part)
    misnamed = {case_id: case for case_id in ids if case_id not in known and (case := meant(case_id, known))}
    if misnamed:
        shown = ", ".join(f"{case_id!r} should read {case!r}" for case_id, case in list(misnamed.items())[:MAX_LISTED])
        rest = f" and {len(misnamed) - MAX_LISTED} more" if len(misnamed) > MAX_LISTED else ""
        raise DataError(
            f"splits_final.json: {len(misnamed)} of {len(ids)} ids in {where} name files instead of cases: {shown}{rest}. "
            "Write the ids without file ending and channel number (_0000); nothing has to be preprocessed again."
        )
    for fold, split in folds.items():
        for part, names in (("train", split.train), ("val", split.val)):
            if twice := sorted(case for case, count in Counter(names).items() if count > 1):
                raise DataError(
                    f"splits_final.json: '{part}' of fold {fold} in {where} lists {listed(twice)} more than once. List each once."
                )


def meant(case_id: str, cases: Collection[str]) -> str:
    """The case among `cases` that the name of one of its files belongs to: `a.1_0000.nii.gz` to `a.1`; '' if there is none."""
    return next((name for name in _shorter(case_id) if name in cases), "")


def _shorter(name: str) -> Iterator[str]:
    """A file's name without its last, its last two, ... endings, each also without channel number or `_seg`."""
    while True:
        yield name
        yield re.sub(r"_(\d{4}|seg)$", "", name)
        if "." not in name:
            return
        name = name.rpartition(".")[0]
