"""The job that preprocesses: `python -m orchestrator.preprocessing.job ORDER`, on the node that its CPU cores are taken from.

ORDER is the JSON of an `Order`. It answers by events on stdout, between the lines that nnU-Net prints.
"""

import argparse
import logging
import sys
import traceback

from orchestrator.errors import NnfleetError, name_of
from orchestrator.preprocessing.nnunet import preprocess
from orchestrator.preprocessing.order import Order, Refused
from orchestrator.run.events import emit
from orchestrator.run.interrupts import obey_interrupts


def main(arguments: list[str] | None = None) -> int:
    """Entry point; whatever goes wrong becomes an `error` event and the error's exit code."""
    obey_interrupts()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("order", type=Order.model_validate_json)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        preprocess(options.order, emit)
    except NnfleetError as err:
        emit(Refused(error=name_of(err), message=str(err)))
        return err.exit_code
    except Exception as err:
        traceback.print_exc()
        emit(Refused(error="NnfleetError", message=f"preprocessing: {type(err).__name__}: {err}. See its log."))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
