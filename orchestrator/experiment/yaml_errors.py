"""From what pydantic and the YAML parser report to sentences with file, line, key, what was found and what to do."""

import math
import reprlib
from collections.abc import Hashable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.json_schema import SkipJsonSchema

from orchestrator.errors import ConfigError
from orchestrator.experiment.fields import SINGULAR
from orchestrator.tracking.address import masked
from trainers.contract.names import nearest

SYNONYMS = {
    **dict.fromkeys(("learning_rate", "lr", "base_lr", "init_lr", "learningrate"), "initial_lr"),
    **dict.fromkeys(("batchsize", "bs", "batch"), "batch_size"),
    **dict.fromkeys(("num_epochs", "max_epochs", "n_epochs", "total_epochs"), "epochs"),
    **dict.fromkeys(("patchsize", "patch", "roi_size", "crop_size"), "patch_size"),
    **dict.fromkeys(("num_iterations_per_epoch", "iterations_per_epoch", "iterations", "steps_per_epoch"), "train_iterations"),
    "num_val_iterations_per_epoch": "val_iterations",
}
"""What other tools call a key -> its name here, where no spelling is near."""
EMPTY = {
    ("validation", "checkpoints"): "validates nothing. Name `best`, `final` or both, or leave it out for both",
    ("notify", "when"): "sends nothing. Name `failed`, `succeeded` or `ended`, or leave `notify` out for no messages",
}
"""Lists that a user may not leave empty."""
KeyPath = tuple[int | str, ...]
MAX_CHARACTERS = 200_000
MAX_DEPTH = 100
"""Open brackets at one place; the parser's time grows with their square."""
MAX_NODES = 100_000
"""Values of a document with every alias written out: nine lines of aliases to aliases stand for a billion."""
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict, _SHORT.maxstring, _SHORT.maxother = 3, 12, 12, 200, 200


class _Loader(yaml.SafeLoader):
    """YAML as its users read it: `017` is seventeen (YAML 1.1 says octal), and a duplicate key is an error."""

    def construct_yaml_int(self, node: Any) -> int:
        text = str(self.construct_scalar(node)).replace("_", "")
        if len(text) > 20:
            raise yaml.constructor.ConstructorError(None, None, "a whole number has at most 20 digits", node.start_mark)
        digits = text.lstrip("+-")
        return int(text) if digits.isdecimal() else super().construct_yaml_int(node)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} is a duplicate", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def read_yaml(path: Path) -> tuple[Any, yaml.Node | None]:
    """Content of a YAML file and its node tree (for line numbers). Raises ConfigError for whatever cannot be read or parsed."""
    try:
        with path.open(encoding="utf-8") as stream:
            text = stream.read(MAX_CHARACTERS + 1)
    except FileNotFoundError as err:
        raise ConfigError(f"experiment file: {path} does not exist. Name an existing YAML file.") from err
    except (OSError, ValueError) as err:
        raise ConfigError(f"experiment file: {path} cannot be read as UTF-8 text: {err}. Name a YAML file.") from err
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> tuple[Any, yaml.Node | None]:
    """Like `read_yaml`, of a text; `source` names it in errors."""
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(f"{source}: is longer than {MAX_CHARACTERS} characters and no experiment file. Name another file.")
    if max(accumulate((letter in "[{") - (letter in "]}") for letter in text), default=0) > MAX_DEPTH:
        raise ConfigError(f"{source}: more than {MAX_DEPTH} brackets are open within each other. Correct the file.")
    try:
        root = yaml.compose(text, _Loader)
        if (count := _written_out(root)) > MAX_NODES:
            raise ConfigError(f"{source}: its aliases stand for {count:.0e} values, at most {MAX_NODES} are allowed. Write fewer.")
        return yaml.load(text, _Loader), root
    except yaml.MarkedYAMLError as err:
        line = f":{err.problem_mark.line + 1}" if err.problem_mark else ""
        raise ConfigError(f"{source}{line}: not valid YAML: {err.problem or err}. Correct this line.") from err
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError, AttributeError) as err:
        raise ConfigError(f"{source}: not valid YAML: {err}. Correct the file.") from err


def config_error(err: ValidationError, model: type[BaseModel], source: str, root: yaml.Node | None = None) -> ConfigError:
    """One ConfigError that lists every fault of a document, each with its place."""
    faults = err.errors(include_url=False)
    unknown = [fault for fault in faults if fault["type"] == "extra_forbidden"]
    reported = [fault for fault in faults if not any(_explains(other, fault, model) for other in unknown)]
    return ConfigError("\n".join(dict.fromkeys(_sentence(fault, model, source, root) for fault in reported)))


def refuse_empty(content: dict[str, Any], source: str, root: yaml.Node | None = None) -> None:
    """Raise ConfigError for a checked document whose validation or messages are a list of nothing, as if there were neither key."""
    for (section, key), meaning in EMPTY.items():
        beside = content.get(section)
        if isinstance(beside, Mapping) and beside.get(key) in ([], ()):
            line = _line_of(root, (section, key))
            raise ConfigError(f"{source}{f':{line}' if line else ''}: {section}.{key}: [] {meaning}.")


def _explains(unknown: Any, fault: Any, model: type[BaseModel]) -> bool:
    """True when `fault` is a missing key and the unknown key beside it is its misspelling."""
    *place, key = fault["loc"] or ("",)
    if fault["type"] != "missing" or list(unknown["loc"][:-1]) != place:
        return False
    return repr(key) in nearest(str(unknown["loc"][-1]), _known_keys(model, place))


def _sentence(fault: Any, model: type[BaseModel], source: str, root: yaml.Node | None) -> str:
    path = _as_written(root, fault["loc"])
    line = _line_of(root, path)
    where = f"{source}:{line}" if line else source
    key = ".".join(masked(str(part)) for part in path) or "the file"
    if fault["type"] == "extra_forbidden":
        known = _known_keys(model, path[:-1])
        meant = _meant(str(path[-1]), known)
        listed = "" if meant and len(path) == 1 else f" Known here: {', '.join(known)}."  # there are dozens beside it
        return f"{where}: {key}: unknown key.{meant}{listed}"
    if fault["type"] == "missing":
        return f"{where}: {key}: missing. Add it."
    if not path and not isinstance(fault["input"], dict):
        return f"{where}: the file must hold keys and values (such as `dataset: 17`), got {_short(fault['input'])}."
    message = fault["msg"].removeprefix("Value error, ").replace("Input should be", "must be").rstrip(".")
    if "uri" in path or path == ("tracking",):  # a refused address may hold a password in any form
        return f"{where}: {key}: {message}."
    return f"{where}: {key}: got {_short(fault['input'])}: {message}."


def _meant(key: str, known: Sequence[str]) -> str:
    """A hint with the key that an unknown one may mean."""
    name = SYNONYMS.get(key.lower().replace("-", "_"), "")
    return f" Did you mean {name!r}?" if name in known else nearest(key, known)


def _written_out(node: yaml.Node | None, known: dict[int, float] | None = None) -> float:
    """How many values a document has once every alias is replaced by what it names; infinite for one that contains itself."""
    known = {} if known is None else known
    if id(node) not in known:
        known[id(node)] = math.inf
        parts: list[Any] = []
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            parts = node.value
        known[id(node)] = 1 + sum(_written_out(part, known) for part in parts)
    return known[id(node)]


def _short(value: Any) -> str:
    text = masked(_SHORT.repr(value))  # no password in a terminal or log; before it is cut, as an `@` may be cut off
    return text if len(text) <= 80 else f"{text[:77]}..."


def _known_keys(model: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    for step in path:
        field = model.model_fields.get(str(step))
        kinds = [kind for kind in get_args(field.annotation) or (field.annotation,) if isinstance(kind, type)] if field else []
        models = [kind for kind in kinds if issubclass(kind, BaseModel)]  # `Model | None` too
        if not models:
            return []
        model = models[0]
    hidden: Any = SkipJsonSchema  # of a field that nobody writes; mypy takes it for generic
    return [name for name, field in model.model_fields.items() if hidden() not in field.metadata]


def _as_written(root: yaml.Node | None, path: KeyPath) -> KeyPath:
    """`path` with the key that the document has where it has the one for a single value (`fold`)."""
    one = SINGULAR.get(str(path[0])) if path else None
    keys = {key.value for key, _ in root.value} if isinstance(root, yaml.MappingNode) else set()
    return (one, *path[1:]) if one in keys and one is not None else path


def _line_of(node: yaml.Node | None, path: KeyPath) -> int | None:
    """Line (from 1) of the deepest key of `path` that the document has."""
    line = None
    for step in path:
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == str(step)), None)
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            line = node.start_mark.line + 1
        else:
            break
    return line
