"""``import:pkg.module:Attr``: an adapter of the application, without a plugin."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar, cast

from raftkit_core.errors import BadAdapterUrl, BrokenPlugin, RaftError
from raftkit_core.plugins.url import AdapterUrl, did_you_mean

if TYPE_CHECKING:
    from raftkit_core.types.adapter import AdapterContext

T = TypeVar("T")


def make_imported(url: AdapterUrl, context: AdapterContext, interface: Callable[..., T]) -> T:
    """The adapter ``url`` points to.

    ``Attr`` may be dotted. An instance of ``interface`` is used as it is (by every node of the process that names it).
    Anything else must be callable (a class, a function) and is called with keyword arguments: ``url`` if it has a
    parameter of that name, ``context`` if it has one of that name, and nothing else. It must give an instance of
    ``interface``. Options (``?limit=3``) are for callables that take ``url``.

    Raises:
        BadAdapterUrl: no module or no attribute is named.
        BrokenPlugin: the module cannot be imported, lacks the attribute, the call fails, or gives something else.
        UnknownOption: options for what does not take ``url``.
    """
    module_name, separator, attribute = url.path.partition(":")
    if not separator or not all(part.isidentifier() for part in f"{module_name}.{attribute}".split(".")):
        raise BadAdapterUrl(f"{url} names no object", hint="write import:package.module:Name")
    found = _attribute_of(_import(module_name, url), attribute, url)
    wanted: Any = interface  # an abstract class: mypy takes it as a callable only
    if isinstance(found, wanted):
        url.require_no_options()
        return cast(T, found)
    if not callable(found):
        raise BrokenPlugin(f"{url} is {type(found).__name__}, neither a {wanted.__name__} nor anything to call")
    made = _call(found, url, context)
    if not isinstance(made, wanted):
        raise BrokenPlugin(
            f"{url} gives a {type(made).__name__}, which is no {wanted.__name__}",
            hint=f"derive it from {wanted.__module__}.{wanted.__name__}",
        )
    return cast(T, made)


def _import(module_name: str, url: AdapterUrl) -> Any:
    try:
        return import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if module_name == missing or module_name.startswith(missing + "."):
            raise BrokenPlugin(
                f"{url}: there is no module {missing!r}",
                hint="install it, or set PYTHONPATH to the folder that holds it",
            ) from error
        raise BrokenPlugin(f"{url}: {module_name} needs the module {missing!r}", hint="install it") from error
    except (Exception, SystemExit) as error:
        raise BrokenPlugin(f"{url}: importing {module_name} failed: {type(error).__name__}: {error}") from error


def _attribute_of(module: Any, attribute: str, url: AdapterUrl) -> Any:
    found = module
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            nearest = did_you_mean(part, [name for name in dir(found) if not name.startswith("_")])
            file = getattr(sys.modules.get(module.__name__), "__file__", None) or module.__name__
            raise BrokenPlugin(
                f"{url}: {module.__name__} has no {attribute!r}" + (f"; did you mean {nearest!r}?" if nearest else ""),
                hint=f"the module was found at {file}",
            ) from error
    return found


def _call(found: Any, url: AdapterUrl, context: AdapterContext) -> Any:
    try:
        parameters = inspect.signature(found).parameters
    except (TypeError, ValueError):  # some builtins tell nothing
        parameters = {}  # type: ignore[assignment]
    arguments = {
        name: value
        for name, value in (("url", url), ("context", context))
        if name in parameters and parameters[name].kind is not inspect.Parameter.POSITIONAL_ONLY
    }
    if "url" not in arguments:
        url.require_no_options()
    try:
        return found(**arguments)
    except RaftError:
        raise
    except Exception as error:
        raise BrokenPlugin(
            f"{url} failed: {type(error).__name__}: {error}",
            hint="it is called with those of the keyword arguments url and context that it names, and nothing else",
        ) from error
