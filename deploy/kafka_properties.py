"""Kafka properties for the clients of the command line.

The settings hold the names of Kafka's Java client, which Flink uses; librdkafka, which the command
line uses, has other names for the same things.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from flink_jobs.errors import EddyError

# The same name and meaning in both clients; others tune the Java client and do not concern us.
_SAME = frozenset(
    {
        "client.dns.lookup",
        "client.id",
        "connections.max.idle.ms",
        "reconnect.backoff.max.ms",
        "reconnect.backoff.ms",
        "sasl.kerberos.service.name",
        "sasl.mechanism",
        "security.protocol",
        "ssl.key.password",
    }
)
_JAAS = re.compile(r"""(\w+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|'([^']*)'|([^\s;]+))""")


def to_librdkafka(properties: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Translate properties of the Java client into those of librdkafka.

    Args:
        properties: Name and value, as in the table [source.kafka].

    Returns:
        What makes the same connection; tuning of the Java client is left out.

    Raises:
        EddyError: Something that librdkafka cannot do, such as a JKS trust store.
    """
    given = dict(properties)
    result = {name: value for name, value in given.items() if name in _SAME}
    if "ssl.endpoint.identification.algorithm" in given:
        algorithm = given["ssl.endpoint.identification.algorithm"]
        result["ssl.endpoint.identification.algorithm"] = algorithm or "none"
    if "sasl.jaas.config" in given:
        result |= _credentials(given["sasl.jaas.config"])
    result |= _trust(given)
    result |= _identity(given)
    return result


def _credentials(jaas: str) -> dict[str, str]:
    if not re.search(r"(Plain|Scram)LoginModule\b", jaas):
        raise EddyError(
            "sasl.jaas.config: expected PlainLoginModule or ScramLoginModule for the command line,"
            f" found {jaas.split()[0] if jaas.split() else 'nothing'}"
        )
    options = {}
    for name, double, single, bare in _JAAS.findall(jaas):
        options[name] = re.sub(r"\\(.)", r"\1", double) if double else single or bare
    if not {"username", "password"} <= options.keys():
        raise EddyError("sasl.jaas.config: expected username=... and password=..., found neither")
    return {"sasl.username": options["username"], "sasl.password": options["password"]}


def _trust(given: dict[str, str]) -> dict[str, str]:
    if "ssl.truststore.certificates" in given:
        return {"ssl.ca.pem": given["ssl.truststore.certificates"]}
    if "ssl.truststore.location" not in given:
        return {}
    kind = given.get("ssl.truststore.type", "JKS")
    if kind != "PEM":
        raise EddyError(
            f'ssl.truststore.type: expected "PEM" for the command line, found "{kind}";'
            " write the trust store's certificates into a PEM file"
        )
    return {"ssl.ca.location": given["ssl.truststore.location"]}


def _identity(given: dict[str, str]) -> dict[str, str]:
    if "ssl.keystore.key" in given:
        return {
            "ssl.key.pem": given["ssl.keystore.key"],
            "ssl.certificate.pem": given.get("ssl.keystore.certificate.chain", ""),
        }
    if "ssl.keystore.location" not in given:
        return {}
    location, kind = given["ssl.keystore.location"], given.get("ssl.keystore.type", "JKS")
    if kind == "PEM":  # one file with the key and the chain
        return {"ssl.key.location": location, "ssl.certificate.location": location}
    if kind == "PKCS12":
        password = given.get("ssl.keystore.password", "")
        return {"ssl.keystore.location": location, "ssl.keystore.password": password}
    raise EddyError(
        f'ssl.keystore.type: expected "PEM" or "PKCS12" for the command line, found "{kind}"'
    )
