"""Registries: what an experiment file refers to by name, and what users can add without a fork.

A name is looked up in this order:

1. the built-in entries;
2. the entry points of installed packages, in the group `sdcore.<kind>s`, such as
   `[project.entry-points."sdcore.contexts"]`;
3. with a colon it is an import path, `my_module:my_context`. The module is looked for on Python's
   path, then in the folder of the experiment file, then in the current directory.

What is not built in is part of the experiment's identity with its source code: see `source_digest`.
"""

import ast
import hashlib
import importlib
import inspect
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from types import MappingProxyType, ModuleType
from typing import Any, Generic, TypeVar, cast

from sdcore.errors import ConfigError, PluginError, SdcoreError

_DIGEST = "__sdcore_digest__"  # attribute of a module: digest of its source when first used
_INSTALLED = {"site-packages", "dist-packages"}


@dataclass(frozen=True)
class Entry:
    """One registered thing. Each kind derives its own class, with what the kind needs.

    Attributes:
        name: how an experiment file refers to it.
        about: what it is, from its docstring.
    """

    name: str
    about: str = field(default="", kw_only=True)


E = TypeVar("E", bound=Entry)


@dataclass(frozen=True)
class Registry(Generic[E]):
    """The entries of one kind, by name: built-in ones, and those that users add.

    Attributes:
        kind: what an entry is, in the singular, such as `context`.
        entry: class of the entries.
        builtin: the entries that come with sdcore.
    """

    kind: str
    entry: type[E]
    builtin: tuple[E, ...]

    @property
    def group(self) -> str:
        """Group of the entry points of this kind."""
        return f"sdcore.{self.kind}s"

    @cached_property
    def _builtin(self) -> Mapping[str, E]:
        return MappingProxyType({each.name: each for each in self.builtin})

    @property
    def _installed(self) -> Mapping[str, EntryPoint]:
        """Entry points by name. A built-in entry cannot be replaced."""
        return {each.name: each for each in entry_points(group=self.group)}

    def names(self) -> list[str]:
        """The names of the built-in and the installed entries; import paths have no list."""
        return [*self._builtin, *(name for name in self._installed if name not in self._builtin)]

    def entries(self) -> dict[str, E]:
        """Everything in `names`, loaded.

        Raises:
            ConfigError: an installed entry cannot be imported, or has the name of a built-in one.
        """
        if taken := self._installed.keys() & self._builtin.keys():
            raise ConfigError(
                f"an installed {self.kind} has the name of a built-in one",
                got=", ".join(self._installed[name].value for name in sorted(taken)),
                where=f"entry points {self.group}",
                fix="give it another name",
            )
        return {name: self[name] for name in self.names()}

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def __getitem__(self, name: str) -> E:
        return self.get(name)

    def get(self, name: str, *, others: Iterable[str] = (), where: str = "") -> E:
        """Return the entry of a name.

        Args:
            name: a built-in or installed name, or an import path.
            others: names that are known elsewhere, for the error.
            where: the setting that has the name, for the error.

        Raises:
            ConfigError: there is none, it cannot be imported, or it is of another kind.
        """
        if name in self._builtin:
            return self._builtin[name]
        path = self._path(name)
        if path is None:
            raise unknown(self.kind, name, [*self.names(), *others], where)
        found = import_path(path)
        if not isinstance(found, self.entry):
            raise ConfigError(
                f"this is no {self.kind}",
                got=f"{path}, which is of type {type(found).__name__}",
                expected=f"a {self.kind}, made with the decorator @sdcore.{self.kind}",
                where=where or name,
            )
        return replace(found, name=name)

    def digest(self, name: str) -> str | None:
        """Digest of the source code of an entry; None for a built-in or unknown one.

        Raises:
            ConfigError: the module cannot be imported, or its source code cannot be read.
        """
        path = None if name in self._builtin else self._path(name)
        return None if path is None else source_digest(_module(path.partition(":")[0]))

    @contextmanager
    def running(self, name: str, where: str = "") -> Iterator[None]:
        """Name the entry, and the last line of its module, in whatever goes wrong while it runs.

        Errors of sdcore, and those of built-in entries, are left as they are.

        Args:
            name: of the entry.
            where: what it was given, for the error.

        Raises:
            PluginError: the block raises something else, or ends the process.
        """
        try:
            yield
        except SdcoreError:
            raise
        except (Exception, SystemExit) as error:
            if name in self._builtin:
                raise
            frames = traceback.extract_tb(error.__traceback__)
            module = sys.modules.get((self._path(name) or "").partition(":")[0])
            file = getattr(module, "__file__", None)
            frame = ([each for each in frames if each.filename == file] or frames)[-1]
            raise PluginError(
                f"the {self.kind} {name!r} fails",
                got=f"{type(error).__name__}: {error}",
                where=f"{frame.filename}, line {frame.lineno}{where and f', {where}'}",
                fix="`--debug` shows the traceback",
            ) from error

    def _path(self, name: str) -> str | None:
        """The import path that a name stands for."""
        if ":" in name:
            return name
        installed = self._installed
        return installed[name].value if name in installed else None


def unknown(kind: str, name: str, known: Sequence[str], where: str = "") -> ConfigError:
    """The error for a name that is not registered, with the nearest names that are."""
    near = get_close_matches(name, known, n=2)
    return ConfigError(
        f"no {kind} of this name",
        got=name,
        expected=f"one of {', '.join(known)}, or an import path module:attribute",
        where=where,
        fix=f"did you mean {' or '.join(near)}?" if near else "",
    )


def about(implementation: object) -> str:
    """The first paragraph of a docstring as one line."""
    return " ".join((inspect.getdoc(implementation) or "").partition("\n\n")[0].split())


@contextmanager
def importable(*folders: Path | str | None) -> Iterator[None]:
    """Let modules of these folders and of the current directory be imported inside the block.

    They come last on Python's path, so that they hide no installed module. What is imported stays
    imported; a module that is imported inside a function, later, is not found this way.
    """
    before = list(sys.path)
    sys.path += [str(each) for each in (*folders, Path.cwd()) if each is not None]
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before


def import_path(path: str) -> Any:
    """Return the object that a `module:attribute` path names.

    Raises:
        ConfigError: the module cannot be imported, or has no such attribute.
    """
    name, _, attributes = path.partition(":")
    module = _module(name)
    found: Any = module
    for attribute in attributes.split("."):
        if not hasattr(found, attribute):
            near = get_close_matches(attribute, vars(module), n=2)
            raise ConfigError(
                "the module has no such attribute",
                got=attribute,
                where=f"{path} ({getattr(module, '__file__', None)})",
                fix=f"did you mean {' or '.join(near)}?" if near else "",
            )
        found = getattr(found, attribute)
    return found


def source_digest(module: ModuleType) -> str:
    """SHA-256 over the source code of a module and of what it imports from beside it.

    Covered are the module, and the modules that it imports, directly or not, from its own package
    or from files below the folder that holds it. Not covered are installed packages, sdcore itself
    (the run's code version names it), and files that are not Python code.

    Raises:
        ConfigError: the source cannot be read, or is not the one that was imported.
    """
    files = {name: Path(file).read_bytes() for name, file in _files(module).items()}
    if not files:
        raise ConfigError(
            "the source code of this module cannot be read, so its results have no identity",
            got=module.__name__,
            expected="a module with a file",
            fix="move the code from the notebook or the prompt into a .py file",
        )
    whole = hashlib.sha256()
    for name, content in sorted(files.items()):
        whole.update(f"{name} {len(content)}\n".encode() + content)
    digest = whole.hexdigest()
    if vars(module).setdefault(_DIGEST, digest) != digest:
        raise ConfigError(
            "the source code has changed since it was imported",
            got=module.__name__,
            where=module.__file__ or "",
            fix="start Python again, so that what runs is what the file says",
        )
    return digest


def _module(name: str) -> ModuleType:
    try:
        with importable():
            module = _imported_module(name)
            there = PathFinder.find_spec(name.partition(".")[0]) if name != "__main__" else None
            top = sys.modules[name.partition(".")[0]]
    except (ImportError, ValueError) as error:  # ValueError: an empty name
        raise ConfigError(
            "the module cannot be imported",
            got=error,
            where=name,
            fix="put it beside the experiment file, in the current directory or on PYTHONPATH",
        ) from error
    except (Exception, SystemExit) as error:
        raise ConfigError(
            "the module ends with an error", got=f"{type(error).__name__}: {error}", where=name
        ) from error
    if there and there.origin and not _same_file(there.origin, top.__file__):
        raise ConfigError(
            "another module of this name is imported already",
            got=top.__file__,
            expected=there.origin,
            where=name,
            fix="rename one of the two",
        )
    return module


def _imported_module(name: str) -> ModuleType:
    """Import a module. What it prints when it runs goes to standard error, not among results."""
    first = name not in sys.modules  # later calls come from several threads, which share sys.stdout
    with redirect_stdout(sys.stderr) if first else nullcontext():
        return importlib.import_module(name)


def _same_file(one: str, other: str | None) -> bool:
    return other is not None and Path(one).resolve() == Path(other).resolve()


def _files(module: ModuleType) -> dict[str, str]:
    """Source files by module name: the module's, and those that it imports from beside it."""
    found: dict[str, str] = {}
    waiting = [module.__name__]
    while waiting:
        name = waiting.pop()
        file = _file(name)
        if file is None or name in found or not _beside(module, name, file):
            continue
        found[name] = file
        waiting += _imported(name, file)
    return found


def _file(name: str) -> str | None:
    module = sys.modules.get(name)
    if module is not None:
        file = module.__file__ if hasattr(module, "__file__") else None
    else:
        try:
            spec = _spec(name)
        except (ImportError, ValueError):  # such as `__main__`
            return None
        file = spec.origin if spec else None
    return file if file and file.endswith(".py") and Path(file).exists() else None


def _spec(name: str) -> ModuleSpec | None:
    """Where a module is: `find_spec`, but it imports no package that the module is in.

    Importing would run code that the run never asked for, which may print or fail.
    """
    top, *parts = name.split(".")
    spec = find_spec(top)
    for part in parts:
        if spec is None or spec.submodule_search_locations is None:
            return None  # an attribute of a module, not a module
        spec = PathFinder.find_spec(part, list(spec.submodule_search_locations))
    return spec


def _beside(module: ModuleType, name: str, file: str) -> bool:
    """Return whether a module is in another's package, or below the folder that holds it."""
    top, mine = name.partition(".")[0], module.__name__.partition(".")[0]
    if top == mine:
        return True
    own = Path(module.__file__ or "").resolve()
    levels = module.__name__.count(".") + (own.name == "__init__.py")
    folder, path = own.parents[levels], Path(file).resolve()
    if top in ("sdcore", "tasks", "flows") or not path.is_relative_to(folder):
        return False
    return not _INSTALLED & {*path.relative_to(folder).parts, folder.name}


def _imported(name: str, file: str) -> list[str]:
    """Names of the modules that a source file imports; some are attributes of modules."""
    package = name if file.endswith("__init__.py") else name.rpartition(".")[0]
    found = [name.rpartition(".")[0]] if "." in name else []
    try:
        tree = ast.parse(Path(file).read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(
            "a module that is imported from beside the named one is not Python",
            got=f"{type(error).__name__}: {error}",
            where=file,
            fix="repair it, or import it no more",
        ) from error
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            source = ".".join(filter(None, (base, node.module)))
            found += [source, *(f"{source}.{alias.name}" for alias in node.names)]
    return [each for each in found if each]


Implementation = TypeVar("Implementation")


def loaded(implementation: Implementation | str) -> Implementation:
    """An implementation, imported if it is given as an import path (built-in ones are).

    Modules of the user's own are not looked for: graders are asked for in every batch, and to look
    into folders again while another thread imports fails now and then.
    """
    if isinstance(implementation, str):
        return cast(Implementation, resolve_name(implementation))
    return implementation
