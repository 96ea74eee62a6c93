"""The settings: defaults, layers, and the text of each error."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from flink_jobs.settings import (
    DEFAULTS,
    DETECTORS,
    MASK,
    Settings,
    SettingsError,
    load,
    load_with_origins,
    mask,
)
from flink_jobs.settings_reader import keys_of, to_plain

QUOTED_DETECTORS = ", ".join(f'"{name}"' for name in DETECTORS[:-1]) + f' or "{DETECTORS[-1]}"'


def problems_of(
    *overrides: str, environ: dict[str, str] | None = None, path: Path | None = None
) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        load(path, environ or {}, overrides)
    return caught.value.problems


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def defaults() -> Settings:
    return load(None, {}, [])


def test_defaults_are_complete_and_typed(defaults: Settings) -> None:
    assert defaults.source.bootstrap_servers == "127.0.0.1:9092"
    assert defaults.event.entities == (
        ("user", "/user_id"),
        ("merchant", "/merchant_id"),
        ("device", "/device_id"),
    )
    assert defaults.event.marks == ("ecom", "pos", "app", "recurring", "transfer")
    assert defaults.event.value_max == 1e15
    assert defaults.source.kafka == ()
    assert defaults.detection.partner_kinds == (("device", "user"),)
    for path in keys_of(Settings):
        section, name = path.split(".")
        assert hasattr(getattr(defaults, section), name)


def test_all_detectors_vote_by_default(defaults: Settings) -> None:
    assert set(defaults.detection.detectors) == set(DETECTORS)


def test_every_key_stands_in_the_defaults() -> None:
    lines = DEFAULTS.read_text(encoding="utf-8").splitlines()
    for name in {path.split(".")[1] for path in keys_of(Settings)}:
        assert any(line.startswith(f"{name} =") or line.endswith(f".{name}]") for line in lines)


def test_settings_are_frozen(defaults: Settings) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        defaults.triton.timeout_ms = 1  # type: ignore[misc]


def test_later_layers_win_and_origins_say_so(tmp_path: Path) -> None:
    path = write(tmp_path, "[triton]\ntimeout_ms = 1\nmax_rows = 2\nmax_in_flight = 3\n")
    environ = {"EDDY_TRITON__MAX_ROWS": "20", "EDDY_TRITON__MAX_IN_FLIGHT": "30", "OTHER": "x"}
    settings, origins = load_with_origins(path, environ, ["triton.max_in_flight=300"])
    assert settings.triton.timeout_ms == 1
    assert settings.triton.max_rows == 20
    assert settings.triton.max_in_flight == 300
    assert origins["triton.timeout_ms"] == str(path)
    assert origins["triton.max_rows"] == "EDDY_TRITON__MAX_ROWS"
    assert origins["triton.max_in_flight"] == "--set triton.max_in_flight"
    assert origins["triton.enabled"] == "the defaults"


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("triton.enabled=false", "triton", "enabled", False),
        ("triton.max_rows=1_000", "triton", "max_rows", 1000),
        ("state.log_ratio=2", "state", "log_ratio", 2.0),
        ("event.value_max=1e6", "event", "value_max", 1e6),
        ("job.name = spaces", "job", "name", "spaces"),
        ("event.marks=a, b", "event", "marks", ("a", "b")),
        ('event.marks=["a b", "c,d"]', "event", "marks", ("a b", "c,d")),
        ("event.value_pointer=", "event", "value_pointer", None),
        ("detection.silence_kinds=", "detection", "silence_kinds", ()),
        (
            "source.start=timestamp_ms:1700000000000",
            "source",
            "start",
            "timestamp_ms:1700000000000",
        ),
        ("flink.rest=https://flink.example:443", "flink", "rest", "https://flink.example:443"),
        ("source.bootstrap_servers=a:1,b:2", "source", "bootstrap_servers", "a:1,b:2"),
        ("source.kafka.client.id=x", "source", "kafka", (("client.id", "x"),)),
        ('source.kafka={a.b = "c"}', "source", "kafka", (("a.b", "c"),)),
        (
            "event.entities.card=/card",
            "event",
            "entities",
            (
                ("user", "/user_id"),
                ("merchant", "/merchant_id"),
                ("device", "/device_id"),
                ("card", "/card"),
            ),
        ),
    ],
)
def test_text_becomes_the_type_of_the_key(
    override: str, section: str, key: str, value: object
) -> None:
    found = getattr(getattr(load(None, {}, [override]), section), key)
    assert found == value
    assert type(found) is type(value)


def test_a_table_in_a_file_replaces_the_whole_table(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "[event.entities]\nhost = '/host'\n[detection]\nsilence_kinds = ['host']\n"
        "partner_kinds = {}\n",
    )
    settings = load(path, {}, [])
    assert settings.event.entities == (("host", "/host"),)
    assert settings.detection.partner_kinds == ()


def test_kafka_properties_keep_their_dots_however_they_are_written(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        '[source.kafka]\nsecurity.protocol = "SASL_SSL"\n"sasl.mechanism" = "PLAIN"\n'
        "max.poll.records = 5\nenable.x = true\n",
    )
    environ = {"EDDY_SOURCE__KAFKA__SASL_JAAS_CONFIG": "secret words"}
    settings = load(path, environ, [])
    assert dict(settings.source.kafka) == {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "PLAIN",
        "max.poll.records": "5",
        "enable.x": "true",
        "sasl.jaas.config": "secret words",
    }


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        (
            "triton.timeout=5",
            "--set triton.timeout: unknown key triton.timeout; did you mean triton.timeout_ms?",
        ),
        (
            "sink.delivry=x",
            "--set sink.delivry: unknown key sink.delivry; did you mean sink.delivery?",
        ),
        (
            "state.shards=2",
            "--set state.shards: unknown key state.shards; did you mean flink.shards?",
        ),
        (
            "job.qqq=1",
            "--set job.qqq: unknown key job.qqq; known are name",
        ),
        ("trition.x=1", "--set trition.x: unknown section trition; did you mean triton?"),
        (
            "zzz.x=1",
            "--set zzz.x: unknown section zzz; known are job, source, event, triton, state,"
            " detection, sink, flink",
        ),
        ("nothing", "--set: expected section.key=value, found nothing in the command line"),
        (
            "triton.timeout_ms=0",
            "triton.timeout_ms: expected a number from 1 to 60,000,"
            " found 0 in --set triton.timeout_ms",
        ),
        (
            "triton.timeout_ms=1.5",
            "triton.timeout_ms: expected a whole number, found 1.5 in --set triton.timeout_ms",
        ),
        (
            "triton.timeout_ms=true",
            "triton.timeout_ms: expected a whole number, found true in --set triton.timeout_ms",
        ),
        (
            "triton.enabled=yes",
            'triton.enabled: expected true or false, found "yes" in --set triton.enabled',
        ),
        (
            "state.log_ratio=much",
            'state.log_ratio: expected a number, found "much" in --set state.log_ratio',
        ),
        (
            "state.log_ratio=nan",
            "state.log_ratio: expected a finite number, found nan in --set state.log_ratio",
        ),
        (
            "sink.delivery=twice",
            'sink.delivery: expected "exactly_once" or "at_least_once", found "twice"'
            " in --set sink.delivery",
        ),
        (
            "source.topic=a topic",
            'source.topic: expected a Kafka topic (letters, digits, . _ -), found "a topic"'
            " in --set source.topic",
        ),
        (
            "triton.endpoint=localhost",
            'triton.endpoint: expected host:port of Triton\'s gRPC service, found "localhost"'
            " in --set triton.endpoint",
        ),
        (
            "event.id_pointer=payment_id",
            'event.id_pointer: expected a JSON Pointer that begins with "/", such as "/payment_id",'
            ' found "payment_id" in --set event.id_pointer',
        ),
        (
            "event.id_pointer=",
            'event.id_pointer: expected a JSON Pointer that begins with "/", such as "/payment_id",'
            ' found "" in --set event.id_pointer',
        ),
        (
            "event.value_pointer=/a~2",
            'event.value_pointer: expected a JSON Pointer that begins with "/", such as'
            ' "/payment_id", found "/a~2" in --set event.value_pointer',
        ),
        (
            "event.marks=a,b,a",
            'event.marks: expected each entry once, found ["a", "b", "a"] in --set event.marks',
        ),
        (
            "event.marks=1,2,3,4,5,6,7,8,9",
            "event.marks: expected 0 to 8 entries,"
            ' found ["1", "2", "3", "4", "5", "6", "7", "8", "9"] in --set event.marks',
        ),
        (
            "event.marks=[1]",
            'event.marks: expected a list of text, such as ["a", "b"], found [1]'
            " in --set event.marks",
        ),
        (
            "detection.detectors=amount,luck",
            f'detection.detectors: expected {QUOTED_DETECTORS}, found ["amount", "luck"]'
            " in --set detection.detectors",
        ),
        (
            "event.entities={}",
            "event.entities: expected 1 to 8 entries, found {} in --set event.entities",
        ),
        (
            "event.entities.Card=/c",
            "event.entities: expected kinds of entities in small letters,"
            " found {user, merchant, device, Card} in --set event.entities.Card",
        ),
        (
            "event.entities.card=c",
            'event.entities: expected JSON Pointers that begin with "/", such as user = "/user_id",'
            " found {user, merchant, device, card} in --set event.entities.card",
        ),
        (
            "event.entities=[1]",
            'event.entities: expected a table of text, such as {name = "text"}, found [1]'
            " in --set event.entities",
        ),
        ("job.name.first=x", "--set job.name.first: job.name is no table, so it has no first"),
        (
            "detection.silence_kinds=shop",
            "detection.silence_kinds: expected kinds of [event.entities] (user, merchant, device),"
            ' found "shop"',
        ),
        (
            "detection.partner_kinds.user=shop",
            "detection.partner_kinds: expected kinds of [event.entities] (user, merchant, device),"
            ' found "shop"',
        ),
        (
            "event.value_max=-1",
            "event.value_min: expected less than event.value_max = -1, found 0",
        ),
        (
            "event.value_min=-1",
            'event.value_min: expected 0 or more with event.value_transform = "log", found -1',
        ),
        (
            "event.marks=",
            'event.marks: expected at least one with event.mark_pointer = "/channel", found none',
        ),
        (
            "triton.tls_root_certificates=/ca.pem",
            "triton.tls: expected true with certificates, found false",
        ),
        (
            "flink.parallelism=2",
            "flink.shards: expected at least flink.parallelism = 2, found 1",
        ),
        (
            "sink.transaction_timeout_ms=2000",
            "sink.transaction_timeout_ms: expected more than twice flink.checkpoint_interval_ms ="
            " 1000, found 2000",
        ),
        (
            "sink.late_topic=eddy.alerts",
            "sink: expected source.topic and the topics of [sink] to differ,"
            " found eddy.payments, eddy.alerts, eddy.dead-letters, eddy.alerts, eddy.models",
        ),
        (
            "state.max_entities=5",
            "state.initial_entities: expected at most state.max_entities = 5, found 4096",
        ),
    ],
)
def test_a_mistake_is_named_with_what_was_expected(override: str, problem: str) -> None:
    assert problems_of(override) == (problem,)


def test_client_key_and_chain_come_together() -> None:
    assert problems_of("triton.tls=true", "triton.tls_private_key=k") == (
        "triton.tls_private_key: expected together with triton.tls_certificate_chain,"
        " found one of the two",
    )


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, "job = 5\n[triton]\ntimeout = 1\n[source]\ntopic = 7\n")
    environ = {"EDDY_TRITON_MAX_ROWS": "1", "EDDY_CONFIG": "x", "EDDY_STATE__TTL_S": "1"}
    assert problems_of("sink.x=1", environ=environ, path=path) == (
        f"job: expected a table, found 5 in {path}",
        f"{path}: unknown key triton.timeout; did you mean triton.timeout_ms?",
        "EDDY_TRITON_MAX_ROWS: a section and its key are parted by two underscores;"
        " did you mean EDDY_TRITON__MAX_ROWS?",
        "--set sink.x: unknown key sink.x; known are alerts_topic, dead_letters_topic, late_topic,"
        " models_topic, scores_topic, delivery, transaction_timeout_ms, kafka",
        f"source.topic: expected text in quotes, found 7 in {path}",
        "state.ttl_s: expected a number from 60 to 3,162,240,000, found 1 in EDDY_STATE__TTL_S",
    )


def test_the_message_counts_the_mistakes() -> None:
    with pytest.raises(SettingsError, match=r"^1 mistake in the settings:\n  --set: expected"):
        load(None, {}, ["x"])
    with pytest.raises(SettingsError, match=r"^2 mistakes in the settings:\n"):
        load(None, {}, ["x", "y"])


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    missing = tmp_path / "none.toml"
    assert problems_of(path=missing) == (f"{missing}: cannot be read: No such file or directory",)
    broken = write(tmp_path, "[triton\n")
    assert problems_of(path=broken)[0].startswith(f"{broken}: no valid TOML: Expected ']'")
    broken.write_bytes(b"\xff\xfe")
    assert problems_of(path=broken) == (f"{broken}: expected UTF-8 text, found other bytes",)


def test_json_round_trip_keeps_everything() -> None:
    settings = load(
        None,
        {},
        [
            "source.kafka.sasl.password=hush",
            "event.mark_pointer=",
            "event.marks=",
            "event.entities={b = '/b', a = '/é'}",
            "detection.silence_kinds=",
            "detection.partner_kinds={}",
        ],
    )
    again = Settings.from_json(settings.to_json())
    assert again == settings
    assert again.event.entities == (("b", "/b"), ("a", "/é"))
    assert again.event.mark_pointer is None


def test_json_is_checked(defaults: Settings) -> None:
    with pytest.raises(SettingsError, match="the settings are no JSON: Expecting value"):
        Settings.from_json("?")
    with pytest.raises(SettingsError, match="expected a table of sections, found none"):
        Settings.from_json("[]")
    document = json.loads(defaults.to_json())
    del document["triton"]["timeout_ms"]
    document["triton"]["max_rows"] = 0
    with pytest.raises(SettingsError) as caught:
        Settings.from_json(json.dumps(document))
    assert caught.value.problems == (
        "triton.timeout_ms: expected a value, found none",
        "triton.max_rows: expected a number from 1 to 65,536, found 0 in the JSON of the settings",
    )


def test_hash_follows_behaviour_and_not_secrets(defaults: Settings) -> None:
    digest = defaults.settings_hash()
    assert len(digest) == 16
    assert digest == load(None, {}, []).settings_hash()
    assert digest != load(None, {}, ["triton.timeout_ms=499"]).settings_hash()
    one = load(None, {}, ["source.kafka.sasl.password=one"])
    two = load(None, {}, ["source.kafka.sasl.password=two"])
    assert digest != one.settings_hash()
    assert one.settings_hash() == two.settings_hash()
    # The order of entities and marks is part of the state.
    swapped = load(None, {}, ["event.marks=pos,ecom,app,recurring,transfer"])
    assert digest != swapped.settings_hash()


@pytest.mark.parametrize(
    "name",
    [
        "sasl.password",
        "sasl.jaas.config",
        "ssl.key.password",
        "ssl.keystore.key",
        "sasl.oauthbearer.client.secret",
        "basic.auth.user.info",
        "SASL.PASSWORD",
    ],
)
def test_secrets_are_masked(name: str) -> None:
    assert mask(name, "hush") == MASK
    assert mask(name, "") == ""
    settings = load(None, {}, [f"sink.kafka.{name}=hush", "sink.kafka.client.id=me"])
    assert settings.to_public()["sink"]["kafka"] == {name: MASK, "client.id": "me"}
    assert to_plain(settings)["sink"]["kafka"] == {name: "hush", "client.id": "me"}


def test_errors_never_show_the_values_of_a_table(tmp_path: Path) -> None:
    path = write(tmp_path, '[source.kafka]\n"sasl.password" = ["hush"]\n')
    (problem,) = problems_of(path=path)
    assert "hush" not in problem
    assert "{sasl.password}" in problem


def test_override_checks_like_the_command_line(defaults: Settings) -> None:
    changed = defaults.override("triton.enabled=false", "source.topic=other")
    assert changed.triton.enabled is False
    assert changed.source.topic == "other"
    assert changed.sink == defaults.sink
    with pytest.raises(SettingsError, match="unknown key triton.x"):
        defaults.override("triton.x=1")


def test_long_values_are_shortened_in_messages() -> None:
    (problem,) = problems_of(f"job.name={'x' * 500}")
    assert len(problem) < 250
    assert "xxx... in --set job.name" in problem
