"""The names of Kafka's Java client in those of librdkafka."""

from __future__ import annotations

import pytest
from confluent_kafka import Consumer

from deploy.kafka_properties import to_librdkafka
from flink_jobs.errors import EddyError


def test_tuning_of_the_java_client_is_left_out() -> None:
    assert to_librdkafka([("max.poll.records", "5"), ("client.id", "me")]) == {"client.id": "me"}


@pytest.mark.parametrize("module", ["plain.PlainLoginModule", "scram.ScramLoginModule"])
@pytest.mark.parametrize(
    ("jaas", "password"),
    [
        ('username="me" password="hush";', "hush"),
        ("username='me' password='hush';", "hush"),
        ("username=me password=hush;", "hush"),
        ('username="me" password="a\\"b\\\\c; d=e";', 'a"b\\c; d=e'),
        ('username="me" password="";', ""),
    ],
)
def test_credentials(module: str, jaas: str, password: str) -> None:
    config = f"org.apache.kafka.common.security.{module} required {jaas}"
    assert to_librdkafka([("sasl.jaas.config", config)]) == {
        "sasl.username": "me",
        "sasl.password": password,
    }


def test_certificates() -> None:
    assert to_librdkafka(
        [
            ("security.protocol", "SSL"),
            ("ssl.truststore.type", "PEM"),
            ("ssl.truststore.location", "/ca.pem"),
            ("ssl.keystore.type", "PEM"),
            ("ssl.keystore.location", "/me.pem"),
            ("ssl.key.password", "hush"),
            ("ssl.endpoint.identification.algorithm", ""),
        ]
    ) == {
        "security.protocol": "SSL",
        "ssl.ca.location": "/ca.pem",
        "ssl.key.location": "/me.pem",
        "ssl.certificate.location": "/me.pem",
        "ssl.key.password": "hush",
        "ssl.endpoint.identification.algorithm": "none",
    }
    assert to_librdkafka(
        [
            ("ssl.truststore.certificates", "CA"),
            ("ssl.keystore.key", "KEY"),
            ("ssl.keystore.certificate.chain", "CHAIN"),
        ]
    ) == {"ssl.ca.pem": "CA", "ssl.key.pem": "KEY", "ssl.certificate.pem": "CHAIN"}
    assert to_librdkafka(
        [
            ("ssl.keystore.type", "PKCS12"),
            ("ssl.keystore.location", "/me.p12"),
            ("ssl.keystore.password", "hush"),
        ]
    ) == {"ssl.keystore.location": "/me.p12", "ssl.keystore.password": "hush"}


@pytest.mark.parametrize(
    ("properties", "message"),
    [
        (
            {"ssl.truststore.location": "/t.jks"},
            'ssl.truststore.type: expected "PEM" for the command line, found "JKS"',
        ),
        (
            {"ssl.keystore.location": "/k.jks"},
            'ssl.keystore.type: expected "PEM" or "PKCS12" for the command line, found "JKS"',
        ),
        ({"sasl.jaas.config": "a.OAuthBearerLoginModule required;"}, "found a.OAuthBearerLogin"),
        ({"sasl.jaas.config": ""}, "found nothing"),
        ({"sasl.jaas.config": "a.PlainLoginModule required username=me;"}, "expected username=..."),
    ],
)
def test_what_librdkafka_cannot_do_is_refused(properties: dict[str, str], message: str) -> None:
    with pytest.raises(EddyError) as caught:
        to_librdkafka(properties.items())
    assert message in str(caught.value)


def test_librdkafka_takes_every_name() -> None:
    jaas = "x.PlainLoginModule required username=a password=b;"
    given = [
        ("security.protocol", "SASL_PLAINTEXT"),
        ("sasl.mechanism", "PLAIN"),
        ("sasl.jaas.config", jaas),
        ("client.dns.lookup", "use_all_dns_ips"),
        ("client.id", "me"),
        ("reconnect.backoff.ms", "100"),
        ("reconnect.backoff.max.ms", "500"),
        ("connections.max.idle.ms", "60000"),
        ("sasl.kerberos.service.name", "kafka"),
        ("ssl.endpoint.identification.algorithm", "https"),
    ]
    Consumer({**to_librdkafka(given), "group.id": "g", "log_level": 0}).close()
