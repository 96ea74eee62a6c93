"""Read text and tables into typed dataclasses: layers, conversion, rules, and errors that help.

This module knows no setting of eddy: `flink_jobs.settings` declares them as dataclass fields whose
types carry their rules (`Annotated[int, Range(1, 10)]`), and reads them with `Reader`.
"""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Generic, Protocol, TypeVar, get_args, get_origin, get_type_hints

from flink_jobs.errors import EddyError

Pairs = tuple[tuple[str, str], ...]
"""A table of strings in its written order."""

Lists = tuple[tuple[str, tuple[str, ...]], ...]
"""A table of lists of strings in its written order."""

T = TypeVar("T")


class SettingsError(EddyError):
    """Settings that cannot be used.

    Attributes:
        problems: One line for each mistake found; all are reported at once.
    """

    def __init__(self, problems: list[str]) -> None:
        """Join the problems into one message."""
        self.problems = tuple(problems)
        head = "1 mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
        super().__init__(f"{head} in the settings:\n" + "\n".join(f"  {p}" for p in problems))


class Rule(Protocol):
    """What a value must satisfy beyond its type."""

    def expected(self, value: object) -> str | None:
        """Return what was expected in place of `value`, or None where it is fine."""


@dataclass(frozen=True)
class Range:
    """A number from `low` to `high`, both included."""

    low: float
    high: float

    def expected(self, value: object) -> str | None:
        """See `Rule`."""
        assert isinstance(value, int | float)
        if self.low <= value <= self.high:
            return None
        return f"a number from {self.low:,.15g} to {self.high:,.15g}"


@dataclass(frozen=True)
class Matches:
    """A text, or each text of a list and each key of a table, that matches a pattern wholly."""

    pattern: str
    meaning: str

    def expected(self, value: object) -> str | None:
        """See `Rule`."""
        fits = all(re.fullmatch(self.pattern, name) for name in _names(value))
        return None if fits else self.meaning


@dataclass(frozen=True)
class Values:
    """A table whose values match a pattern wholly."""

    pattern: str
    meaning: str

    def expected(self, value: object) -> str | None:
        """See `Rule`."""
        assert isinstance(value, tuple)
        fits = all(re.fullmatch(self.pattern, text) for _, text in value)
        return None if fits else self.meaning


@dataclass(frozen=True)
class Size:
    """A list or table of `low` to `high` different entries."""

    low: int
    high: int

    def expected(self, value: object) -> str | None:
        """See `Rule`."""
        names = _names(value)
        if len(names) != len(set(names)):
            return "each entry once"
        if self.low <= len(names) <= self.high:
            return None
        return f"{self.low} to {self.high} entries"


@dataclass(frozen=True)
class Dotted:
    """Mark a table whose keys hold dots, so that nested tables are one key: a.b.c = "x"."""

    def expected(self, value: object) -> str | None:
        """See `Rule`."""
        del value
        return None


def one_of(*names: str) -> Matches:
    """Return the rule that a text (or each of a list) is one of `names`."""
    quoted = [f'"{name}"' for name in names]
    meaning = quoted[0] if len(names) == 1 else ", ".join(quoted[:-1]) + " or " + quoted[-1]
    return Matches("|".join(re.escape(name) for name in names), meaning)


def _names(value: object) -> list[str]:
    """List a text itself, the texts of a list, or the keys of a table."""
    if isinstance(value, str):
        return [value]
    assert isinstance(value, tuple)
    return [item if isinstance(item, str) else str(item[0]) for item in value]


@dataclass(frozen=True)
class Key:
    """One setting: where it stands, the type of its value and its rules."""

    section: str
    name: str
    type: object
    rules: tuple[Rule, ...]

    @property
    def path(self) -> str:
        """The setting's full name, section.key."""
        return f"{self.section}.{self.name}"

    @property
    def is_table(self) -> bool:
        """Whether the value is a table, of strings or of lists of them."""
        return self.type in (Pairs, Lists)

    @property
    def is_dotted(self) -> bool:
        """Whether the keys of the table hold dots."""
        return any(isinstance(rule, Dotted) for rule in self.rules)


def keys_of(settings_type: type) -> dict[str, Key]:
    """List the settings that a dataclass of dataclasses declares, by their full names."""
    found = {}
    for section, section_type in get_type_hints(settings_type).items():
        for name, hint in get_type_hints(section_type, include_extras=True).items():
            if get_origin(hint) is Annotated:
                base, *rules = get_args(hint)
                key = Key(section, name, base, tuple(rules))
            else:
                key = Key(section, name, hint, ())
            found[key.path] = key
    return found


class Reader(Generic[T]):
    """Gather values in layers, the last wins, then build the dataclass and report all mistakes.

    Args:
        settings_type: A dataclass whose fields are dataclasses, one for each section.
        prefix: Beginning of the names of environment variables, such as "EDDY_".
    """

    def __init__(self, settings_type: type[T], prefix: str) -> None:
        """Start with no value."""
        self._type = settings_type
        self._prefix = prefix
        self._keys = keys_of(settings_type)
        self._sections = list(dict.fromkeys(key.section for key in self._keys.values()))
        self._values: dict[str, object] = {}
        self.origins: dict[str, str] = {}
        self.problems: list[str] = []

    def add_tables(self, document: Mapping[str, object], where: str) -> None:
        """Add the sections of a parsed file."""
        for section, table in document.items():
            if section not in self._sections:
                self._unknown(section, self._sections, "section", where)
            elif not isinstance(table, Mapping):
                self._wrong(section, "a table", table, where)
            else:
                for name, value in table.items():
                    key = self._find(section, str(name), where)
                    if key is not None:
                        self._set(key, value, where)

    def add_environment(self, environ: Mapping[str, str]) -> None:
        """Add the variables PREFIX + SECTION__KEY; other names with the prefix are left alone."""
        for variable in sorted(environ):
            if not variable.startswith(self._prefix):
                continue
            section, *rest = variable.removeprefix(self._prefix).lower().split("__", 2)
            if rest:
                self.add_text(".".join([section, *rest]), environ[variable], variable)
                continue
            for known in self._sections:
                if section.startswith(f"{known}_") and section != known:
                    right = f"{self._prefix}{known}__{section.removeprefix(known + '_')}".upper()
                    self.problems.append(
                        f"{variable}: a section and its key are parted by two underscores;"
                        f" did you mean {right}?"
                    )

    def add_override(self, text: str) -> None:
        """Add "section.key=value" from the command line."""
        path, equals, value = text.partition("=")
        if not equals or "." not in path:
            self._wrong("--set", "section.key=value", text, "the command line")
        else:
            self.add_text(path.strip(), value.strip(), f"--set {path.strip()}")

    def add_text(self, path: str, text: str, where: str) -> None:
        """Add one value given as text; section.table.key sets one entry of a table."""
        section, name, *entry = path.split(".", 2)
        if section not in self._sections:
            self._unknown(section, self._sections, "section", where)
            return
        key = self._find(section, name, where)
        if key is None:
            return
        if not entry:
            self._set(key, _parse_text(key, text), where)
        elif not key.is_table:
            self.problems.append(f"{where}: {key.path} is no table, so it has no {entry[0]}")
        else:
            # An environment variable cannot hold dots, so its underscores stand for them.
            in_environment = where.startswith(self._prefix)
            inner = entry[0].replace("_", ".") if key.is_dotted and in_environment else entry[0]
            table = self._values.get(key.path)
            old = _flatten(table) if key.is_dotted and isinstance(table, Mapping) else table
            value = _parse_list(text) if key.type == Lists else text
            self._set(key, {**(old if isinstance(old, Mapping) else {}), inner: value}, where)

    def build(self) -> T:
        """Convert and check every value.

        Raises:
            SettingsError: With each mistake of all layers.
        """
        sections: dict[str, dict[str, object]] = {name: {} for name in self._sections}
        for path, key in self._keys.items():
            if path not in self._values:
                self.problems.append(f"{path}: expected a value, found none")
                continue
            value, expected = _convert(key, self._values[path])
            if expected is None and value is not None:
                expected = next(filter(None, (rule.expected(value) for rule in key.rules)), None)
            if expected:
                self._wrong(path, expected, self._values[path], self.origins[path])
            sections[key.section][key.name] = value
        if self.problems:
            raise SettingsError(self.problems)
        types = get_type_hints(self._type)
        return self._type(**{name: types[name](**sections[name]) for name in self._sections})

    def _set(self, key: Key, value: object, where: str) -> None:
        self._values[key.path] = value
        self.origins[key.path] = where

    def _find(self, section: str, name: str, where: str) -> Key | None:
        key = self._keys.get(f"{section}.{name}")
        if key is None:
            names = [k.name for k in self._keys.values() if k.section == section]
            near = difflib.get_close_matches(name, names, 1)
            elsewhere = [k.path for k in self._keys.values() if k.name == name]
            known = [f"{section}.{n}" for n in near] or elsewhere[:1]
            self._unknown(f"{section}.{name}", known, "key", where, names)
        return key

    def _unknown(
        self, name: str, known: list[str], what: str, where: str, choices: list[str] | None = None
    ) -> None:
        near = difflib.get_close_matches(name, known, 1) or (known if choices else [])
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(choices or known)}"
        self.problems.append(f"{where}: unknown {what} {name}; {hint}")

    def _wrong(self, name: str, expected: str, found: object, where: str) -> None:
        self.problems.append(f"{name}: expected {expected}, found {show(found, name)} in {where}")


def show(value: object, name: str = "") -> str:
    """Write a value as TOML would, shortened; a table by its keys alone: it may hold secrets."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ", ".join(str(key) for key in value) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(show(item) for item in value) + "]"
    text = f'"{value}"' if isinstance(value, str) and name != "--set" else str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _parse_text(key: Key, text: str) -> object:
    """Read text as the type of the key; what cannot be read stays text, and is refused later."""
    if key.type in (str, str | None):
        return text
    if get_origin(key.type) is tuple and not key.is_table:
        return _parse_list(text)
    return _parse_toml(text)


def _parse_list(text: str) -> object:
    if not text.startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    return _parse_toml(text)


def _parse_toml(text: str) -> object:
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


def _convert(key: Key, value: object) -> tuple[object, str | None]:
    """Return the value in the key's type and None, or what was expected in its place."""
    kind = key.type
    if kind is bool:
        return value, None if isinstance(value, bool) else "true or false"
    if kind is int:
        fits = isinstance(value, int) and not isinstance(value, bool)
        return value, None if fits else "a whole number"
    if kind is float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return value, "a number"
        return float(value), None if math.isfinite(value) else "a finite number"
    if kind in (str, str | None):
        if not isinstance(value, str):
            return value, "text in quotes"
        return value if kind is str else value or None, None
    if key.type == Lists:
        return _convert_lists(value)
    if key.is_table:
        table = _flatten(value) if key.is_dotted and isinstance(value, Mapping) else value
        if not isinstance(table, Mapping) or not all(isinstance(v, str) for v in table.values()):
            return (), 'a table of text, such as {name = "text"}'
        return tuple((str(k), str(v)) for k, v in table.items()), None
    if not _is_list(value):
        return (), 'a list of text, such as ["a", "b"]'
    return tuple(value), None  # type: ignore[arg-type]


def _convert_lists(value: object) -> tuple[object, str | None]:
    if not isinstance(value, Mapping) or not all(_is_list(one) for one in value.values()):
        return (), 'a table of lists of text, such as {name = ["a", "b"]}'
    return tuple((str(name), tuple(one)) for name, one in value.items()), None


def _is_list(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _flatten(table: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Turn nested tables into dotted keys; numbers and booleans become text."""
    flat: dict[str, object] = {}
    for name, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        elif isinstance(value, bool):
            flat[f"{prefix}{name}"] = str(value).lower()
        else:
            flat[f"{prefix}{name}"] = str(value) if isinstance(value, int | float) else value
    return flat


def to_plain(settings: object) -> dict[str, dict[str, object]]:
    """Turn the dataclass into tables as a file would hold them: None is "", pairs are tables."""
    plain: dict[str, dict[str, object]] = {}
    for key in keys_of(type(settings)).values():
        value = getattr(getattr(settings, key.section), key.name)
        if key.type == Lists:
            value = {name: list(one) for name, one in value}
        elif key.is_table:
            value = dict(value)
        elif isinstance(value, tuple):
            value = list(value)
        plain.setdefault(key.section, {})[key.name] = "" if value is None else value
    return plain
