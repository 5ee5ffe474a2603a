"""Recipes as TOML: read from a file or the package, changed by settings, written beside a run.

A wrong key or value is a one-line RecipeError that names it and what is allowed; nothing in a file
is ignored. tomllib reads the file; building our dataclasses from it takes less code here than
adapting a library's messages.
"""

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from repmamba.errors import RecipeError, UsageError
from repmamba.train.recipe import Recipe, must

T = TypeVar("T")


def packaged() -> list[str]:
    """The names of the packaged recipes."""
    folder = files("repmamba.train") / "recipes"
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in folder.iterdir()
        if entry.name.endswith(".toml")
    )


def read_recipe(source: str | Path, settings: Iterable[str] = ()) -> Recipe:
    """The recipe in a file, or the packaged one of that name, changed by `KEY=VALUE` settings.

    Keys are dotted ("optimiser.lr"), values TOML, or otherwise text. Raises RecipeError.
    """
    table = recipe_tables(source)
    for setting in settings:
        set_key(table, *_parse_setting(setting))
    return build(table)


def build(table: Mapping[str, Any]) -> Recipe:
    """A recipe from plain tables, as read from TOML or JSON. Raises RecipeError."""
    return _build(Recipe, table, "")


def recipe_text(recipe: Recipe) -> str:
    """The recipe as TOML, with all defaults; read_recipe gives the same recipe."""
    return _toml(recipe.to_dict())


def recipe_tables(source: str | Path) -> dict[str, Any]:
    """The tables in a recipe file or packaged recipe, not yet checked. Raises RecipeError."""
    path = Path(source)
    if not path.is_file() and str(source) in packaged():
        return tomllib.loads(
            (files("repmamba.train") / "recipes" / f"{source}.toml").read_text(encoding="utf-8")
        )
    if not path.is_file():
        raise RecipeError(
            f"{source} is neither a file nor a packaged recipe; the packaged recipes are "
            f"{', '.join(packaged())}."
        )
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as fault:
        raise RecipeError(f"{source} is not TOML: {fault}.") from fault
    except OSError as fault:
        raise RecipeError(f"{source} cannot be read: {fault.strerror}.") from fault


def set_key(table: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in a recipe's tables to a plain value. Raises RecipeError."""
    *path, last = key.split(".")
    for name in path:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise RecipeError(
                f"{key} cannot be set: {name} is a list. Set the whole list: {name}=[{{...}}]."
            )
    table[last] = value


def _parse_setting(setting: str) -> tuple[str, Any]:
    """The key and value of a KEY=VALUE setting."""
    key, equals, text = setting.partition("=")
    if not equals or not key.strip():
        raise RecipeError(
            f"The setting {setting!r} is not of the form KEY=VALUE, such as optimiser.lr=1e-4."
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    return key.strip(), value


def _build(kind: type[T], table: Any, where: str) -> T:
    if not isinstance(table, Mapping):
        raise RecipeError(f"{where} is {table!r}; it must be a table of {', '.join(_keys(kind))}.")
    hints = get_type_hints(kind)
    for key in table:
        if key not in hints:
            raise RecipeError(_unknown(f"{where}{key}", key, _keys(kind)))
    for one in fields(kind):  # type: ignore[arg-type]  # kind is one of the dataclasses above
        if one.default is MISSING and one.default_factory is MISSING and one.name not in table:
            raise RecipeError(f"{where}{one.name} is missing; every recipe needs it.")
    values = {key: _value(hints[key], value, f"{where}{key}") for key, value in table.items()}
    try:
        return kind(**values)
    except RecipeError:
        raise
    except UsageError as fault:  # from NetworkConfig and Stage, which do not know the key's table
        names_key = str(fault).partition(" ")[0] in hints
        raise RecipeError(
            f"{where}{fault}" if names_key else f"{where.removesuffix('.')}: {fault}"
        ) from fault


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if is_dataclass(hint) and isinstance(hint, type):
        return _build(hint, value, f"{where}.")
    if origin is Literal:
        must(value in arguments, where, value, f"one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        return _values(arguments, value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    must(type(value) is hint, where, value, _KINDS[hint])
    return value


def _values(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    must(isinstance(value, (list, tuple)), where, value, "a list")
    if arguments[-1] is not Ellipsis:
        must(len(value) == len(arguments), where, value, f"a list of {len(arguments)}")
        return tuple(_value(hint, one, where) for hint, one in zip(arguments, value, strict=True))
    return tuple(_value(arguments[0], one, where) for one in value)


_KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def _keys(kind: type) -> list[str]:
    return [one.name for one in fields(kind)]


def _unknown(where: str, key: str, allowed: Sequence[str]) -> str:
    close = difflib.get_close_matches(key, allowed, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    return f"{where} is not a key of a recipe; allowed here: {', '.join(allowed)}.{hint}"


def _toml(table: Mapping[str, Any], where: str = "") -> str:
    # Plain values, lists of them, tables and lists of tables. JSON writes the first two as TOML
    # does, except that characters beyond 16 bits must not be escaped, and that it does not escape
    # DEL.
    plain = [
        f"{key} = {json.dumps(value, ensure_ascii=False)}".replace("\x7f", r"\u007f")
        for key, value in table.items()
        if not _is_table(value)
    ]
    parts = ["\n".join(plain)]
    for key, value in table.items():
        if isinstance(value, Mapping):
            parts.append(f"[{where}{key}]\n{_toml(value, f'{where}{key}.')}")
        elif _is_table(value):
            parts += [f"[[{where}{key}]]\n{_toml(one, f'{where}{key}.')}" for one in value]
    return "\n\n".join(part.rstrip("\n") for part in parts if part) + "\n"


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping) or (
        isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)
    )
