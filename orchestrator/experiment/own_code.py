"""A function of the user's in an experiment file: `loss: my_loss:focal` becomes its files, which then go with the experiment.

Nothing is executed here: the files are parsed, so that a missing function or an argument too few is refused at once.
"""

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema, model_validator

from orchestrator.errors import ConfigError
from trainers.contract.names import nearest
from trainers.contract.own_code import ARGUMENTS, digest_of
from trainers.contract.run_spec import Frozen, OwnCode, OwnPart
from trainers.contract.trainer_table import REFUSED, TRAINERS
from trainers.storage.files import expanded

MAX_BYTES = 50_000
"""Most bytes of the files of one function: code, not weights."""
USAGE = (
    "write `module:function` of a Python file beside the experiment file (`my_loss:focal`), or of a package there (`my_package.loss:focal`)"
)
TRAINER_USAGE = (
    "write `module:Class` of a Python file beside the experiment file (`my_trainer:nnUNetTrainerX`), or of a package there "
    "(`my_package.trainers:nnUNetTrainerX`)"
)
PARTS: tuple[OwnPart, ...] = ("network", "loss", "recipe")


class OwnSource(Frozen):
    """A function, or a trainer's class, with the files that define it."""

    name: str
    """`module:function` or `module:Class`."""
    files: dict[str, str]
    """Path below the folder of the module -> text."""

    @model_validator(mode="after")
    def _within_its_folder(self) -> "OwnSource":
        for name in self.files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or path.suffix != ".py" or "\\" in name:
                raise ValueError(f"{name!r} is no Python file of its own; {USAGE}")
        if sum(len(text.encode()) for text in self.files.values()) > MAX_BYTES:
            raise ValueError(f"the files of {self.name} have more than {MAX_BYTES} bytes; leave out what it does not need")
        return self

    @property
    def code(self) -> OwnCode:
        """As a run specification names it."""
        return OwnCode(name=self.name, sha256=digest_of(self.files))

    @property
    def symbol(self) -> str:
        """The name of the function or class without its module's."""
        return self.name.partition(":")[2]


def own_source(text: str, usage: str = USAGE) -> OwnSource:
    """The function or class that `text` names, `[FOLDER/]module:function`, with its files. Raises ValueError, with the `usage`."""
    place, _, function = text.rpartition(":")
    folder, _, module = place.rpartition("/")
    module = module.removesuffix(".py")
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", module, re.ASCII) or not re.fullmatch(r"[A-Za-z_]\w*", function, re.ASCII):
        raise ValueError(f"{text!r} names no {'class' if usage == TRAINER_USAGE else 'function'}; {usage}")
    try:
        base = expanded(Path(folder or "."))
        files = {path.relative_to(base).as_posix(): path.read_bytes().decode() for path in _files(base, module, usage)}
    except (OSError, UnicodeDecodeError, ConfigError) as err:
        raise ValueError(f"{text}: its files cannot be read: {err}") from err
    return OwnSource(name=f"{module}:{function}", files=files)


def _files(base: Path, module: str, usage: str) -> Iterator[Path]:
    """The one file of a module, or every Python file of the package that it is part of."""
    package = base / module.split(".")[0]
    if (package / "__init__.py").is_file():
        yield from (path for path in sorted(package.rglob("*.py")) if path.is_file() and not path.is_symlink())
    elif "." not in module and package.with_suffix(".py").is_file():
        yield package.with_suffix(".py")
    else:
        raise ValueError(f"{package}.py does not exist, nor a package {package} with an __init__.py; {usage}")


def fault_of(part: OwnPart, source: OwnSource) -> str:
    """Why a function cannot be called for `part`, or a class be a trainer, as far as its file shows; '' when it can. Pure: the file is
    parsed, not executed."""
    module, _, function = source.name.partition(":")
    stem = module.replace(".", "/")
    name = next((name for name in (f"{stem}.py", f"{stem}/__init__.py") if name in source.files), "")
    if not name:
        return f"{module} is no file of {', '.join(sorted(source.files)[:3])}"
    for path, text in source.files.items():
        try:
            tree = ast.parse(text, path)
        except (SyntaxError, ValueError, RecursionError) as err:
            return f"{path} is no Python: {err}"
        if path == name:
            fault = _fault_of_definition(part, tree, function, path)
            if fault:
                return fault
    return ""


def _fault_of_definition(part: OwnPart, tree: ast.Module, function: str, path: str) -> str:
    defined = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    bound = {alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    bound |= {target.id for node in tree.body if isinstance(node, ast.Assign) for target in node.targets if isinstance(target, ast.Name)}
    if function not in defined and function not in bound:
        return f"{path} defines no {function!r}.{nearest(function, [*defined, *bound])}"
    node = defined.get(function)
    if part == "trainer":
        return _fault_of_trainer(function, node, path)
    if not isinstance(node, ast.FunctionDef):  # a class or what is imported is called later, before a worker starts
        return f"{function} of {path} is asynchronous" if isinstance(node, ast.AsyncFunctionDef) else ""
    return _fault_of_arguments(part, node.args, f"{function} of {path}")


def _fault_of_trainer(name: str, node: ast.stmt | None, path: str) -> str:
    if name in TRAINERS:
        return f"{name} is trained by nnfleet itself, exactly: name it without its file, or rename the class in {path} if it is another one"
    if "__" in name:
        return f"{name} of {path} holds two underscores in a row, which separate the parts of a model folder's name; rename the class"
    if node is not None and not isinstance(node, ast.ClassDef):
        return f"{name} of {path} is no class; name a subclass of nnU-Net's nnUNetTrainer"
    if node is not None and name in REFUSED:
        return f"{path} defines a class by the name of nnU-Net's {name}, with which nnU-Net would predict; rename it"
    return ""


def _fault_of_arguments(part: OwnPart, arguments: ast.arguments, what: str) -> str:
    wanted, by_keyword = ARGUMENTS[part], [*arguments.args, *arguments.kwonlyargs]
    names = [argument.arg for argument in by_keyword]
    optional = {argument.arg for argument in arguments.args[len(arguments.args) - len(arguments.defaults) :]}
    optional |= {argument.arg for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if default is not None}
    lacking = [] if arguments.kwarg else [name for name in wanted if name not in names]
    needed = [name for name in names if name not in wanted and name not in optional]
    needed += [argument.arg for argument in arguments.posonlyargs]
    if not lacking and not needed:
        return ""
    faults = [*([f"does not take {', '.join(lacking)}"] if lacking else []), *([f"needs {', '.join(needed)}"] if needed else [])]
    return f"{what} {' and '.join(faults)}; it is called as {part}({', '.join(f'{name}=...' for name in wanted)})"


def with_code_beside(folder: Path, content: Any) -> Any:
    """The content of an experiment file, with functions and trainers found from the folder in which the file lies."""
    if not isinstance(content, dict):
        return content
    beside: dict[str, Any] = {part: _beside(folder, content[part]) for part in PARTS if part in content}
    if "trainers" in content:
        named = content["trainers"]
        found = [_beside(folder, entry) if _names_class(entry) else entry for entry in (named if isinstance(named, list) else [named])]
        beside["trainers"] = found if isinstance(named, list) else found[0]
    return {**content, **beside}


def _beside(folder: Path, text: Any) -> Any:
    return f"{folder.absolute()}/{text}" if isinstance(text, str) and not text.startswith(("~", "/")) else text


def _names_class(entry: Any) -> bool:
    """True for a trainer by its file, false for one by nnU-Net's name."""
    return isinstance(entry, str) and ":" in entry


def own_trainer(entry: Any) -> OwnSource | None:
    """The class that an entry of `trainers` names, with its files; None for an entry that is a name. Raises ValueError."""
    if not (_names_class(entry) or isinstance(entry, Mapping | OwnSource)):
        return None
    source = own_source(entry, TRAINER_USAGE) if isinstance(entry, str) else OwnSource.model_validate(entry)
    if fault := fault_of("trainer", source):
        raise ValueError(fault)
    return source


def _checker(part: OwnPart) -> Callable[[Any], Any]:
    """Of a value for `part`: the function with its files, refused where it cannot be called."""

    def checked(value: Any) -> Any:
        source = own_source(value) if isinstance(value, str) else value
        if isinstance(source, Mapping):
            source = OwnSource.model_validate(source)
        if isinstance(source, OwnSource) and (fault := fault_of(part, source)):
            raise ValueError(fault)
        return source

    return checked


_SCHEMA = {"anyOf": [{"type": "string", "pattern": "^.*[A-Za-z_]\\w*:[A-Za-z_]\\w*$"}, {"type": "object"}, {"type": "null"}]}
Network = Annotated[OwnSource | None, BeforeValidator(_checker("network")), WithJsonSchema(_SCHEMA)]
Loss = Annotated[OwnSource | None, BeforeValidator(_checker("loss")), WithJsonSchema(_SCHEMA)]
Recipe = Annotated[OwnSource | None, BeforeValidator(_checker("recipe")), WithJsonSchema(_SCHEMA)]
