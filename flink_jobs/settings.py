"""eddy's settings: one frozen tree, read and checked once, then passed down.

`eddy.toml` beside this module holds every key with its default and its meaning; the types here
carry the rules. Nothing reads the environment at import.

    settings = load(None, {}, ["triton.timeout_ms=250"])
    settings.triton.timeout_ms                       # 250
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from flink_jobs.settings_reader import (
    Dotted,
    Lists,
    Matches,
    Pairs,
    Range,
    Reader,
    SettingsError,
    Size,
    Values,
    one_of,
    to_plain,
)
from models.baselines.registry import REGISTRY
from models.detectors import DETECTORS

__all__ = [
    "DEFAULTS",
    "DETECTORS",
    "DetectionSettings",
    "EventSettings",
    "FlinkSettings",
    "JobSettings",
    "Settings",
    "SettingsError",
    "SinkSettings",
    "SourceSettings",
    "StateSettings",
    "TritonSettings",
    "load",
    "load_with_origins",
]

DEFAULTS = Path(__file__).with_name("eddy.toml")
PREFIX = "EDDY_"
MASK = "********"
MOST_COMPONENTS = 8  # of one kind
_SECRET = re.compile(r"password|passphrase|secret|token|jaas|credential|\.key$|user\.info")

_YEAR_MS = 366 * 86_400_000
_KIND = r"[a-z][a-z0-9_]{0,31}"
_HOST_PORT = r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}"
_POINTER = Matches(
    r"(/([^~/]|~[01])*)+", 'a JSON Pointer that begins with "/", such as "/payment_id"'
)
_TOPIC = Matches(r"(?!\.\.?$)[A-Za-z0-9._-]{1,249}", "a Kafka topic (letters, digits, . _ -)")
_NAME = Matches(r"[A-Za-z0-9._-]{1,249}", "a name of letters, digits, . _ -")
_KINDS = Matches(_KIND, "kinds of entities in small letters")


@dataclass(frozen=True)
class JobSettings:
    """The job as a whole."""

    name: Annotated[str, _NAME]


@dataclass(frozen=True)
class SourceSettings:
    """Where events come from."""

    bootstrap_servers: Annotated[
        str, Matches(f"{_HOST_PORT}(,{_HOST_PORT})*", "host:port, several by commas")
    ]
    topic: Annotated[str, _TOPIC]
    group_id: Annotated[str, _NAME]
    start: Annotated[
        str,
        Matches(
            r"earliest|latest|committed|timestamp_ms:[0-9]{1,15}",
            '"earliest", "latest", "committed" or "timestamp_ms:<epoch milliseconds>"',
        ),
    ]
    stop: Annotated[str, one_of("never", "latest")]
    batch_ms: Annotated[int, Range(1, 10_000)]
    kafka: Annotated[Pairs, Dotted()]


@dataclass(frozen=True)
class EventSettings:
    """How JSON becomes an event; `entities` pairs each kind with its id's pointer, in order."""

    id_pointer: Annotated[str, _POINTER]
    time_pointer: Annotated[str, _POINTER]
    value_pointer: Annotated[str | None, _POINTER]
    mark_pointer: Annotated[str | None, _POINTER]
    marks: Annotated[tuple[str, ...], Size(0, 8), Matches(r".{1,64}", "marks of 1 to 64 letters")]
    max_future_ms: Annotated[int, Range(0, 100 * _YEAR_MS)]
    allowed_lateness_ms: Annotated[int, Range(0, _YEAR_MS)]
    max_message_bytes: Annotated[int, Range(64, 64 << 20)]
    max_id_bytes: Annotated[int, Range(1, 64)]
    max_nesting: Annotated[int, Range(1, 512)]
    value_min: Annotated[float, Range(-1e300, 1e300)]
    value_max: Annotated[float, Range(-1e300, 1e300)]
    value_integer: bool
    value_transform: Annotated[str, one_of("log", "identity")]
    entities: Annotated[
        Pairs,
        Size(1, 8),
        _KINDS,
        Values(_POINTER.pattern, 'JSON Pointers that begin with "/", such as user = "/user_id"'),
    ]


@dataclass(frozen=True)
class TritonSettings:
    """The inference server and the model on it."""

    enabled: bool
    endpoint: Annotated[str, Matches(_HOST_PORT, "host:port of Triton's gRPC service")]
    model_name: Annotated[str, _NAME]
    model_version: Annotated[str, Matches("[0-9]*", 'a number in quotes, or "" for the newest')]
    timeout_ms: Annotated[int, Range(1, 60_000)]
    max_rows: Annotated[int, Range(1, 65_536)]
    max_in_flight: Annotated[int, Range(1, 1_024)]
    breaker_failures: Annotated[int, Range(1, 1_000)]
    breaker_open_ms: Annotated[int, Range(10, 10_000)]
    tls: bool
    tls_root_certificates: str
    tls_private_key: str
    tls_certificate_chain: str
    model_repository: str
    guard: bool
    probation_s: Annotated[int, Range(0, 90 * 86_400)]


@dataclass(frozen=True)
class StateSettings:
    """What is remembered, for how long, and how it is stored."""

    ttl_s: Annotated[int, Range(60, 100 * 366 * 86_400)]
    max_entities: Annotated[int, Range(1, 100_000_000)]
    initial_entities: Annotated[int, Range(1, 100_000_000)]
    page_rows: Annotated[int, Range(1, 4_096)]
    log_ratio: Annotated[float, Range(0.01, 100)]
    log_min_bytes: Annotated[int, Range(1_024, 1 << 40)]


@dataclass(frozen=True)
class DetectionSettings:
    """When to alert.

    `partner_kinds` pairs a kind with the kind of its partners, `components` with what is computed
    for it beside the core.
    """

    false_alerts_per_million: Annotated[float, Range(1e-6, 100_000)]
    detectors: Annotated[tuple[str, ...], Size(1, len(DETECTORS)), one_of(*DETECTORS)]
    silence_kinds: Annotated[tuple[str, ...], Size(0, 8), _KINDS]
    silence_false_alerts_per_million: Annotated[float, Range(1e-6, 100_000)]
    silence_min_events: Annotated[int, Range(1, 100_000)]
    min_events: Annotated[int, Range(1, 100_000)]
    incident_quiet_s: Annotated[int, Range(1, 366 * 86_400)]
    partner_window_s: Annotated[int, Range(1, 366 * 86_400)]
    partner_kinds: Annotated[Pairs, Size(0, 8), _KINDS, Values(_KIND, "kinds of entities")]
    components: Annotated[Lists, Size(0, 8), _KINDS]
    prior: str


@dataclass(frozen=True)
class SinkSettings:
    """Where alerts, dead letters, late events, model events and scores go, and how surely."""

    alerts_topic: Annotated[str, _TOPIC]
    dead_letters_topic: Annotated[str, _TOPIC]
    late_topic: Annotated[str, _TOPIC]
    models_topic: Annotated[str | None, _TOPIC]
    scores_topic: Annotated[str | None, _TOPIC]
    delivery: Annotated[str, one_of("exactly_once", "at_least_once")]
    transaction_timeout_ms: Annotated[int, Range(1_000, 86_400_000)]
    kafka: Annotated[Pairs, Dotted()]

    @property
    def topics(self) -> tuple[str, ...]:
        """The topics that the job writes."""
        optional = (self.models_topic, self.scores_topic)
        named = (self.alerts_topic, self.dead_letters_topic, self.late_topic)
        return (*named, *(topic for topic in optional if topic is not None))


@dataclass(frozen=True)
class FlinkSettings:
    """How the job runs on the cluster."""

    rest: Annotated[
        str, Matches(f"(https?://)?{_HOST_PORT}", "host:port of the JobManager's REST port")
    ]
    parallelism: Annotated[int, Range(1, 1_024)]
    shards: Annotated[int, Range(1, 1_024)]
    checkpoint_interval_ms: Annotated[int, Range(100, 86_400_000)]
    bundle_time_ms: Annotated[int, Range(1, 10_000)]
    bundle_size: Annotated[int, Range(1, 1_000_000)]


@dataclass(frozen=True)
class Settings:
    """Every setting of eddy, one field for each section of the file."""

    job: JobSettings
    source: SourceSettings
    event: EventSettings
    triton: TritonSettings
    state: StateSettings
    detection: DetectionSettings
    sink: SinkSettings
    flink: FlinkSettings

    def to_json(self) -> str:
        """Write the settings, secrets included, in one line of JSON: what the job is sent."""
        return json.dumps(to_plain(self), separators=(",", ":"), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Read what `to_json` wrote, with every check.

        Raises:
            SettingsError: The text is no JSON object, or a value is missing or wrong.
        """
        try:
            document = json.loads(text)
        except ValueError as error:
            raise SettingsError([f"the settings are no JSON: {error}"]) from None
        return _build([("the JSON of the settings", document)], {}, [])[0]

    def to_public(self) -> dict[str, dict[str, object]]:
        """Return the settings as tables in which passwords and the like are masked."""
        plain = to_plain(self)
        for section in ("source", "sink"):
            table = plain[section]["kafka"]
            assert isinstance(table, dict)
            plain[section]["kafka"] = {k: mask(k, v) for k, v in table.items()}
        return plain

    def settings_hash(self) -> str:
        """Return 16 hexadecimal digits that tell settings apart.

        Secrets are masked first: a log must not help to guess them, and a new password is no new
        behaviour.
        """
        # Entries keep their order: that of entities and marks is part of the meaning.
        text = json.dumps(self.to_public(), separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def override(self, *assignments: str) -> Settings:
        """Return a checked copy with "section.key=value" applied, as `--set` does."""
        return _build([("settings", to_plain(self))], {}, assignments)[0]


def mask(name: str, value: str) -> str:
    """Return `value`, or a mask where the Kafka property `name` holds a secret."""
    return MASK if value and _SECRET.search(name.lower()) else value


def load(path: Path | None, environ: Mapping[str, str], overrides: Sequence[str]) -> Settings:
    """Read the defaults, then the user's file, the environment and the overrides.

    Args:
        path: The user's TOML file, or None.
        environ: Environment variables; those named EDDY_<SECTION>__<KEY> are read.
        overrides: Texts of the form "section.key=value"; they win.

    Raises:
        SettingsError: The file cannot be read, or values are wrong; every mistake is in it.
    """
    return load_with_origins(path, environ, overrides)[0]


def load_with_origins(
    path: Path | None, environ: Mapping[str, str], overrides: Sequence[str]
) -> tuple[Settings, dict[str, str]]:
    """Do as `load`, and return as well where each value, by "section.key", comes from."""
    layers = [("the defaults", _read_toml(DEFAULTS))]
    if path is not None:
        layers.append((str(path), _read_toml(path)))
    return _build(layers, environ, overrides)


def _read_toml(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError([f"{path}: cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError:
        raise SettingsError([f"{path}: expected UTF-8 text, found other bytes"]) from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError([f"{path}: no valid TOML: {error}"]) from None


def _build(
    layers: Sequence[tuple[str, object]], environ: Mapping[str, str], overrides: Sequence[str]
) -> tuple[Settings, dict[str, str]]:
    reader = Reader(Settings, PREFIX)
    for where, document in layers:
        if not isinstance(document, dict):
            raise SettingsError([f"{where}: expected a table of sections, found none"])
        reader.add_tables(document, where)
    reader.add_environment(environ)
    for text in overrides:
        reader.add_override(text)
    settings = reader.build()
    problems = _check_together(settings)
    if problems:
        raise SettingsError(problems)
    return settings, reader.origins


def _check_together(settings: Settings) -> list[str]:
    """Find values that are fine alone and wrong together."""
    event, triton, sink, flink = settings.event, settings.triton, settings.sink, settings.flink
    detection = settings.detection
    problems = []

    def expect(holds: bool, text: str) -> None:
        if not holds:
            problems.append(text)

    kinds = [kind for kind, _ in event.entities]
    asked = [
        *(("detection.silence_kinds", kind) for kind in detection.silence_kinds),
        *(("detection.partner_kinds", kind) for pair in detection.partner_kinds for kind in pair),
        *(("detection.components", kind) for kind, _ in detection.components),
    ]
    for path, kind in asked:
        expect(
            kind in kinds,
            f'{path}: expected kinds of [event.entities] ({", ".join(kinds)}), found "{kind}"',
        )
    for kind, names in detection.components:
        problems += _check_components(kind, names, len(event.marks))
        problems += _check_partners(kind, names, dict(detection.partner_kinds))
    expect(
        event.value_min < event.value_max,
        f"event.value_min: expected less than event.value_max = {event.value_max:.15g},"
        f" found {event.value_min:.15g}",
    )
    expect(
        event.value_transform != "log" or event.value_min >= 0,
        'event.value_min: expected 0 or more with event.value_transform = "log",'
        f" found {event.value_min:.15g}",
    )
    expect(
        event.mark_pointer is None or bool(event.marks),
        f'event.marks: expected at least one with event.mark_pointer = "{event.mark_pointer}",'
        " found none",
    )
    expect(
        bool(triton.tls_private_key) == bool(triton.tls_certificate_chain),
        "triton.tls_private_key: expected together with triton.tls_certificate_chain,"
        " found one of the two",
    )
    files = (triton.tls_root_certificates, triton.tls_private_key, triton.tls_certificate_chain)
    expect(triton.tls or not any(files), "triton.tls: expected true with certificates, found false")
    expect(
        flink.shards >= flink.parallelism,
        f"flink.shards: expected at least flink.parallelism = {flink.parallelism},"
        f" found {flink.shards}",
    )
    expect(
        sink.delivery != "exactly_once"
        or sink.transaction_timeout_ms > 2 * flink.checkpoint_interval_ms,
        "sink.transaction_timeout_ms: expected more than twice flink.checkpoint_interval_ms ="
        f" {flink.checkpoint_interval_ms}, found {sink.transaction_timeout_ms}",
    )
    topics = (settings.source.topic, *sink.topics)
    expect(
        len(set(topics)) == len(topics),
        "sink: expected source.topic and the topics of [sink] to differ,"
        f" found {', '.join(topics)}",
    )
    expect(
        settings.state.initial_entities <= settings.state.max_entities,
        f"state.initial_entities: expected at most state.max_entities ="
        f" {settings.state.max_entities}, found {settings.state.initial_entities}",
    )
    return problems


def _check_partners(kind: str, names: Sequence[str], partners: Mapping[str, str]) -> list[str]:
    """Refuse what would never score: a component reads partners, and the kind has none."""
    readers = [name for name in names if name in REGISTRY and REGISTRY[name].reads_partner]
    if kind in partners or not readers:
        return []
    return [
        f"detection.components.{kind}: {name} expects the kind of its partners in"
        f' [detection.partner_kinds], found none for {kind}; add {kind} = "KIND", with the kind'
        " that is counted"
        for name in readers
    ]


def _check_components(kind: str, names: Sequence[str], marks: int) -> list[str]:
    path, known = f"detection.components.{kind}", sorted(REGISTRY)
    problems = []
    for name in names:
        if name not in REGISTRY:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            problems.append(f"{path}: unknown component {name}; {hint}")
        elif REGISTRY[name].reads_mark and marks < 2:
            problems.append(f"{path}: {name} expects at least two event.marks, found {marks}")
    if len(set(names)) != len(names) or len(names) > MOST_COMPONENTS:
        found = ", ".join(names)
        problems.append(f"{path}: expected up to {MOST_COMPONENTS} names, each once, found {found}")
    return problems
