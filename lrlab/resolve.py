"""From a name in a config to an object: the name is the path of the code.

A bare name resolves in its room of lrlab ("resnet.WideResNet" in room "lrlab.models" is
`lrlab/models/resnet.py:WideResNet`); `module:attribute` is absolute;
"their_package.their_module:Model" is a user's own code. There is no registry to keep.
"""

import contextlib
import importlib
import inspect
import pkgutil
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lrlab import values
from lrlab.values import near


class ConfigError(ValueError):
    """One or more problems of a config, found before data is read or anything compiles."""

    def __init__(self, problems: Iterable[str]):
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class Problems:
    """Collects the problems of parts that are built one after another."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def attempt(self, build: Callable[[], Any]) -> Any:
        """What `build` returns, or None with its problems kept."""
        try:
            return build()
        except ConfigError as e:
            self.found += [p for p in e.problems if p not in self.found]
        except ValueError as e:
            self.found.append(str(e))
        return None


def cause(e: BaseException) -> str:
    """An exception on one line, with the place in the user's code that it came from."""
    if isinstance(e, SyntaxError):
        return f"{e.filename}:{e.lineno}:{e.offset}: {e.msg}"
    said = ": ".join([type(e).__name__, *str(e).strip().splitlines()[:1]])
    others = [Path(__file__).parent, *(Path(sysconfig.get_path(p)) for p in ("stdlib", "purelib"))]
    frames = [(Path(f.filename), f.lineno) for f in traceback.extract_tb(e.__traceback__)]
    own = [f for f in frames if f[0].exists() and not {*others} & {*f[0].parents}]
    return f"{said} ({own[-1][0].name}, line {own[-1][1]})" if own else said


def names(room: str) -> dict[str, Any]:
    """Every public name of a room as a config writes it: "cosine", "resnet.WideResNet".

    A package lists its names itself, or has those of its modules.
    """
    package = importlib.import_module(room)
    found = dict(_public(package))
    if found:
        return found
    for info in pkgutil.iter_modules(getattr(package, "__path__", [])):
        if not info.name.startswith("_"):
            module = importlib.import_module(f"{room}.{info.name}")
            found |= {
                info.name if k in (info.name, "run") else f"{info.name}.{k}": v
                for k, v in _public(module)
            }  # a module and its function of one name are one word: "digits"; so is a job's `run`
    return found


def _public(module: Any) -> Iterable[tuple[str, Any]]:
    """Public callables that the module defines or exports."""
    exported = getattr(module, "__all__", None)
    for name, value in vars(module).items():
        if name[0] == "_" or not callable(value):
            continue
        at_home = getattr(value, "__module__", None) == module.__name__
        if name in exported if exported is not None else at_home:
            yield name, value


def find(room: str, name: Any, field: str = "name", trusted: bool = True) -> Callable[..., Any]:
    """The object that `name` names, in `room` or absolutely.

    Args:
      room: package or module in which a bare name resolves, such as "lrlab.schedules".
      name: "cosine", "resnet.WideResNet" or "module:attribute".
      field: the config's field, for messages.
      trusted: False for names from a stored run folder: they resolve only inside lrlab, optax and
        flax, since reading a run must never run its author's code.
    Raises:
      ConfigError: nothing of that name; the message has the nearest names.
    """
    if not isinstance(name, str) or not name:
        raise ConfigError(
            [f"{field}={name!r} must be a name, such as 'cosine' or 'module:attribute'"]
        )
    if ":" not in name:
        members = names(room)
        if name not in members:
            raise ConfigError([f"{field}={name!r} is not in {room}; {near(name, members)}"])
        return members[name]
    path, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in path.split(".")):
        raise ConfigError([f"{field}={name!r} must be 'module:attribute', with the module's path"])
    if not trusted and path.partition(".")[0] not in ("lrlab", "optax", "flax"):
        raise ConfigError(
            [
                f"{field}={name!r} comes from a stored run and is outside lrlab, optax and flax: "
                "not imported"
            ]
        )
    try:
        module = importlib.import_module(path)
    except (Exception, SystemExit) as e:  # it is a program, and may fail in any way
        missing = "; is it installed?" if isinstance(e, ImportError) else ""
        raise ConfigError([f"{field}={name!r}: cannot import {path!r}: {cause(e)}{missing}"]) from e
    value = getattr(module, attribute, None)
    if attribute.startswith("_") or not callable(value):
        known = [k for k, v in vars(module).items() if k[0] != "_" and callable(v)]
        raise ConfigError(
            [f"{field}={name!r}: {path} has no {attribute!r}; {near(attribute, known)}"]
        )
    return value


def parameters(target: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """What `target` takes, by name; a Flax module's `parent` and `name` are not for configs."""
    hidden = ("parent", "name") if hasattr(target, "__dataclass_fields__") else ()
    for eval_str in True, False:  # an annotation may name what is there for type checkers only
        with contextlib.suppress(Exception):
            found = inspect.signature(target, eval_str=eval_str).parameters
            return {k: v for k, v in found.items() if k not in hidden}
    return {}  # something built in


def required(target: Callable[..., Any]) -> list[str]:
    """Keywords that `target` cannot do without."""
    return [
        key
        for key, p in parameters(target).items()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]


def check(
    target: Callable[..., Any], kwargs: Mapping[str, Any], given: Iterable[str], field: str
) -> list[str]:
    """Problems of calling `target` with `kwargs` plus the names in `given`, as messages."""
    takes, problems = parameters(target), []
    loose = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    for key in kwargs:
        if key in given:
            problems.append(f"{field}.{key}: lrlab sets this itself, take it out of the config")
        elif key not in takes and not loose:
            settable = [k for k in takes if k not in given]
            settable += values.UNITS if "schedule[" in field else ()  # a phase has a length too
            problems.append(
                f"{field}.{key}={kwargs[key]!r}: {target.__name__} does not take it; "
                + (near(key, settable) if settable else "it takes nothing")
            )
        elif key in takes:
            try:
                _fit(kwargs[key], takes[key])
            except TypeError as e:
                problems.append(f"{field}.{key}={kwargs[key]!r} must be {e}")
    for key in required(target):
        if key not in kwargs and key not in given:
            problems.append(f"{field}.{key} is missing: {target.__name__} needs it")
    return problems


def _fit(value: Any, parameter: inspect.Parameter) -> Any:
    """A keyword's value as its annotation wants it; what is like its default is good too."""
    alike = type(value) is type(parameter.default) and not isinstance(value, tuple)
    return value if alike else values.fit(value, parameter.annotation)


def fitted(room: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    """A spec that `check` found sound, with 1e3 as 1000 where an int is wanted, and the like."""
    takes = parameters(find(room, spec["name"]))
    return {k: _fit(v, takes[k]) if k in takes else v for k, v in spec.items()}


def resolve(
    room: str, spec: Mapping[str, Any], field: str, given: Mapping[str, Any] | None = None
) -> Any:
    """Calls what `spec["name"]` names, with the rest of `spec` and `given` as keywords.

    Raises:
      ConfigError: unknown name or keyword, a missing one, or a value that the callee refuses.
      RuntimeError, OSError: what it reads is not there (DataError), or cannot be read.
    """
    given = given or {}
    if "name" not in spec:
        raise ConfigError([f"{field}.name is missing; {near('', names(room))}"])
    target = find(room, spec["name"], f"{field}.name")
    kwargs = {k: v for k, v in spec.items() if k != "name"}
    if problems := check(target, kwargs, given, field):
        raise ConfigError(problems)
    kwargs = {k: v for k, v in fitted(room, spec).items() if k != "name"}
    try:
        return target(**kwargs, **given)
    except ConfigError as e:
        raise ConfigError([f"{field}: {p}" for p in e.problems]) from e
    except (ValueError, TypeError) as e:
        raise ConfigError([f"{field} ({spec['name']}): {e}"]) from e
    except (RuntimeError, OSError):
        raise
    except Exception as e:  # it may be the user's own code
        raise ConfigError([f"{field} ({spec['name']}): {cause(e)}"]) from e
