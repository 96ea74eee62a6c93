"""Triton Inference Server with no container: the server in nvidia-pytriton's wheel."""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from deploy.stack.options import StackError
from deploy.stack.processes import HOST, find_marked, port_answers, start_process, stop_processes
from deploy.stack.record import StackState
from flink_jobs.errors import EddyError
from flink_jobs.rollout import read_rollout, versions_in

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where Linux shows them
# Its Python backend makes an empty folder here at each start and a kill leaves it.
LEFTOVERS = ("/tmp", "python_env_*")  # noqa: S108 - fixed in the server's code
LEFTOVER_WINDOW_S = 20.0
CANARY_TIMEOUT_S = 5.0
DTYPES = {"FP32": np.float32, "FP64": np.float64, "INT32": np.int32, "INT64": np.int64}


def region_prefix(root: Path) -> str:
    """Name what begins the shared-memory regions of the Triton that runs in a folder."""
    return f"eddy-{hashlib.sha256(str(root).encode()).hexdigest()[:12]}-"


def start(state: StackState) -> psutil.Process:
    """Clean up after a dead server and start a new one.

    Raises:
        StackError: its environment or libpython is missing, or it cannot be started.
    """
    options = state.options
    clean(state)
    folder = state.root / "triton"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "folders-before").write_text("\n".join(sorted(_folders())), "utf-8")
    python = options.triton_venv / "bin" / "python"
    packages = _packages(options.triton_venv)
    server = packages / "pytriton" / "tritonserver"
    binary = server / "bin" / "tritonserver"
    if not binary.is_file() or not python.exists():
        raise StackError(
            f"no Triton in {options.triton_venv} (expected {binary}); run `make setup`"
        )
    version, library = _python_library(python)
    backends = _lay_backends(server, state.root / "triton" / "backends", version)
    if not options.triton_repo.is_dir():
        raise StackError(f"no model repository at {options.triton_repo}")
    if not os.access(binary, os.X_OK):
        binary.chmod(0o755)
    command = [
        str(binary),
        f"--model-repository={options.triton_repo}",
        f"--backend-directory={backends}",
        f"--backend-config=python,shm-region-prefix-name={region_prefix(state.root)}",
        # Room for the largest request at once: regions grow slowly.
        "--backend-config=python,shm-default-byte-size=8388608",
        f"--model-config-name={options.model_config_name}",
        "--disable-auto-complete-config",
        "--model-control-mode=explicit",
        *((f"--load-model={options.model_name}",) if _has_model(state) else ()),
        # A model that does not load is reported by the canary, with Triton's own words.
        "--exit-on-error=false",
        "--strict-readiness=false",
        # By default Triton listens on every address.
        f"--http-address={HOST}",
        f"--grpc-address={HOST}",
        f"--metrics-address={HOST}",
        f"--http-port={state.ports['triton_http']}",
        f"--grpc-port={state.ports['triton_grpc']}",
        f"--metrics-port={state.ports['triton_metrics']}",
        "--exit-timeout-secs=5",
        "--http-thread-count=2",
    ]
    return start_process(
        state.root,
        "triton",
        command,
        output=state.log("triton"),
        environment={
            "PATH": f"{python.parent}:/usr/local/bin:/usr/bin:/bin",
            "VIRTUAL_ENV": str(options.triton_venv),
            # The running Python's library first: the wheel carries one of another version.
            "LD_LIBRARY_PATH": f"{library.parent}:{packages / 'nvidia_pytriton.libs'}",
            "PYTHONPATH": str(packages),
            "PYTHONDONTWRITEBYTECODE": "1",
            "LANG": "C.UTF-8",
            "HOME": str(state.root / "triton"),
        },
        folder=state.root / "triton",
    )


def probe(state: StackState) -> str | None:
    """Ask the version in charge for a canary answer; return None when it comes, else what is wrong.

    The input is made from the model's own metadata, one row of ones: a valid input of the
    intensity model, which refuses zeros (a gap has no ratio of zero).

    Raises:
        StackError: the model cannot be loaded, which waiting will not change.
    """
    # Imported here: gRPC takes half a second, and a stack without Triton needs it not.
    from tritonclient.utils import InferenceServerException

    name, version = state.options.model_name, version_in_charge(state)
    host, _, port = state.triton_endpoint.rpartition(":")
    if not port_answers(host, int(port)):
        return f"nothing listens on {state.triton_endpoint}"
    try:
        with _client(state) as client:
            if not client.is_server_ready(client_timeout=CANARY_TIMEOUT_S):
                return "the server is not ready"
            if not client.is_model_ready(name, version, client_timeout=CANARY_TIMEOUT_S):
                return _why_not_loaded(state, client)
            return _canary(client, name, version)
    except InferenceServerException as error:
        return f"the canary inference on model {name} fails: {error.message()}"


def mend(state: StackState) -> bool:
    """Load the model anew in a server whose backend process died; say whether it answers now.

    Each version has a process of its own. Only those that fail are loaded anew, while the others go
    on answering: Triton takes a version whose files are younger for a new one. Where that is not
    enough, all are unloaded first.
    """
    from tritonclient.utils import InferenceServerException

    name = state.options.model_name
    root = state.options.triton_repo / name
    try:
        with _client(state) as client:
            for number in versions_in(root):
                with contextlib.suppress(InferenceServerException):
                    if _canary(client, name, str(number)) is None:
                        continue
                with contextlib.suppress(OSError):
                    (root / str(number) / "model.py").touch()
            with contextlib.suppress(InferenceServerException):
                client.load_model(name, client_timeout=60.0)
            if probe(state) is None:
                return True
            client.unload_model(name, client_timeout=30.0)
            client.load_model(name, client_timeout=60.0)
        return probe(state) is None
    except (InferenceServerException, StackError):
        return False


def leave_out_broken(state: StackState) -> list[int]:
    """Load the model without the versions that do not load, if the one in charge is not of them.

    A server that starts loads all versions of a model or none. A broken one, which nobody may ask
    for, must not keep the one in charge from coming back.

    Returns:
        The versions left out; none where that is no way out, or the server does not answer.
    """
    from tritonclient.utils import InferenceServerException

    name, version = state.options.model_name, version_in_charge(state)
    if state.options.triton is not None or not version:
        return []
    try:
        with _client(state) as client:
            broken = broken_versions(state, client)
            if not broken or int(version) in broken:
                return []
            folder = state.options.triton_repo / name
            kept = [number for number in versions_in(folder) if number not in broken]
            client.load_model(name, config=_config_of(state, kept), client_timeout=60.0)
    except (InferenceServerException, OSError, ValueError):
        return []
    return broken


def broken_versions(state: StackState, client: Any) -> list[int]:
    """Name the versions, of those that are there, which the server tried to load in vain."""
    folder = state.options.triton_repo / state.options.model_name
    there = versions_in(folder)
    index = client.get_model_repository_index(client_timeout=CANARY_TIMEOUT_S).models
    return sorted(
        int(entry.version)
        for entry in index
        if entry.name == state.options.model_name
        and entry.version.isdigit()
        and int(entry.version) in there
        # "unloaded" is what Triton says of sound versions that went with a broken one.
        and entry.state == "UNAVAILABLE" and entry.reason not in ("", "unloaded")
    )  # fmt: skip


def versions_left_out(state: StackState) -> list[int]:
    """Name the broken versions that a server goes without; none where it does not answer."""
    from tritonclient.utils import InferenceServerException

    try:
        with _client(state) as client:
            return broken_versions(state, client)
    except InferenceServerException:
        return []


def version_in_charge(state: StackState) -> str:
    """Return the version to ask; "" leaves it to the server, where nothing says which."""
    try:
        folder = state.options.triton_repo / state.options.model_name
        return str(read_rollout(folder).in_charge)
    except EddyError:
        return ""


def _config_of(state: StackState, versions: list[int]) -> str:
    """Return the model's configuration as JSON, with only these versions."""
    from google.protobuf import (  # type: ignore[import-untyped]  # ships no types
        json_format,
        text_format,
    )
    from tritonclient.grpc import model_config_pb2

    folder = state.options.triton_repo / state.options.model_name
    named = folder / "configs" / f"{state.options.model_config_name}.pbtxt"
    path = named if named.is_file() else folder / "config.pbtxt"
    config = text_format.Parse(path.read_text("utf-8"), model_config_pb2.ModelConfig())
    config.version_policy.specific.versions.extend(versions)
    return json.dumps(json_format.MessageToDict(config, preserving_proto_field_name=True))


def clean(state: StackState) -> None:
    """End backend processes without a server and remove their shared-memory regions."""
    stop_processes(find_marked(state.root, "triton"), grace_s=0.0)
    for region in regions(state.root):
        region.unlink(missing_ok=True)
    # A start that was cut short noted nothing yet.
    note_folders(state)
    record = state.root / "triton" / "folders"
    with contextlib.suppress(OSError):
        for name in record.read_text("utf-8").split():
            with contextlib.suppress(OSError):
                # Empty ones only, which rmdir sees to.
                Path(LEFTOVERS[0], name).rmdir()
    record.unlink(missing_ok=True)


def note_folders(state: StackState) -> None:
    """Write down which empty folders our server made in /tmp while it started."""
    folder = state.root / "triton"
    with contextlib.suppress(OSError):
        before = folder / "folders-before"
        began = before.stat().st_mtime
        fresh = [
            name
            for name in _folders() - set(before.read_text("utf-8").split())
            if Path(LEFTOVERS[0], name).stat().st_mtime < began + LEFTOVER_WINDOW_S
        ]
        (folder / "folders").write_text("\n".join(fresh), "utf-8")
        before.unlink()


def _folders() -> set[str]:
    return {path.name for path in Path(LEFTOVERS[0]).glob(LEFTOVERS[1])}


def regions(root: Path) -> list[Path]:
    """Find the shared-memory regions of the Triton that runs, or ran, in a folder."""
    if not SHARED_MEMORY.is_dir():
        return []
    return sorted(SHARED_MEMORY.glob(f"*{region_prefix(root)}*"))


@contextlib.contextmanager
def _client(state: StackState) -> Iterator[Any]:
    from tritonclient.grpc import InferenceServerClient

    tls = state.options.triton_tls
    client = InferenceServerClient(
        state.triton_endpoint,
        ssl=tls.enabled,
        root_certificates=tls.root_certificates,
        private_key=tls.private_key,
        certificate_chain=tls.certificate_chain,
    )
    try:
        yield client
    finally:
        client.close()


def _canary(client: Any, name: str, version: str) -> str | None:
    from tritonclient.grpc import InferInput

    metadata = client.get_model_metadata(name, version, client_timeout=CANARY_TIMEOUT_S)
    inputs = []
    for tensor in metadata.inputs:
        if tensor.datatype not in DTYPES:
            return f"no canary for input {tensor.name} of type {tensor.datatype}"
        shape = [1 if size < 0 else int(size) for size in tensor.shape]
        item = InferInput(tensor.name, shape, tensor.datatype)
        item.set_data_from_numpy(np.ones(shape, DTYPES[tensor.datatype]))
        inputs.append(item)
    answer = client.infer(name, inputs, version, client_timeout=CANARY_TIMEOUT_S)
    for tensor in metadata.outputs:
        if tensor.datatype not in DTYPES:
            continue  # words, such as what is wrong with each row
        values = answer.as_numpy(tensor.name)
        if values is None or values.size == 0:
            return f"output {tensor.name} of model {name} is empty"
        if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
            return f"output {tensor.name} of model {name} is not finite"
    return None


def _why_not_loaded(state: StackState, client: Any) -> str | None:
    name = state.options.model_name
    index = client.get_model_repository_index(client_timeout=CANARY_TIMEOUT_S).models
    found = [entry for entry in index if entry.name == name]
    reasons = [f"{entry.state or 'not loaded'}: {entry.reason}" for entry in found if entry.reason]
    if any(entry.state == "LOADING" for entry in found):
        return f"model {name} is loading"
    if state.options.triton is not None:
        # The user's server may be loading it, in a way of its own.
        return f"model {name} is not ready ({'; '.join(reasons) or 'not in its repository'})"
    if not _has_model(state):
        if not state.options.require_model:
            return None
        raise StackError(
            f"Triton runs but its repository {state.options.triton_repo} holds no model {name} "
            f"(expected {name}/configs/{state.options.model_config_name}.pbtxt or "
            f"{name}/config.pbtxt, and a version folder)"
        )
    if reasons:
        raise StackError(f"Triton cannot load model {name}: {'; '.join(reasons)}")
    return f"model {name} is not ready"


def _has_model(state: StackState) -> bool:
    folder = state.options.triton_repo / state.options.model_name
    named = folder / "configs" / f"{state.options.model_config_name}.pbtxt"
    versions = [part for part in folder.glob("[0-9]*") if part.is_dir()]
    return bool(versions) and (named.is_file() or (folder / "config.pbtxt").is_file())


def _packages(venv: Path) -> Path:
    found = sorted((venv / "lib").glob("python3*/site-packages"))
    if not found:
        raise StackError(f"no Python environment at {venv}; run `make setup`")
    return found[0]


def _python_library(python: Path) -> tuple[str, Path]:
    """Find the version of the environment's Python and the library that embeds it."""
    script = (
        "import sys, sysconfig as s; print(f'{sys.version_info[0]}.{sys.version_info[1]}');"
        "print(sys.base_prefix); print(s.get_config_var('LIBDIR') or '')"
    )
    try:
        done = subprocess.run(
            [str(python), "-c", script], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise StackError(f"{python} does not run: {error}; run `make setup`") from error
    version, base, libraries = done.stdout.splitlines()[:3]
    name = f"libpython{version}.so.1.0"
    multiarch = getattr(sys.implementation, "_multiarch", "")
    for folder in (Path(base) / "lib", Path(libraries or base), Path("/usr/lib") / multiarch):
        if (folder / name).exists():
            return version, folder / name
    raise StackError(
        f"Triton's Python backend needs {name}, which this Python ({base}) does not bring; install "
        f"it (Debian: libpython{version}) or use a Python built with --enable-shared"
    )


def _lay_backends(server: Path, target: Path, version: str) -> Path:
    """Copy the Python backend beside the stub of our Python version; the wheel stays untouched."""
    stub = server / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        have = sorted(part.name for part in stub.parent.parent.glob("3*"))
        raise StackError(f"Triton has no Python backend for Python {version}, only for {have}")
    folder = target / "python"
    folder.mkdir(parents=True, exist_ok=True)
    for source in (*(server / "backends" / "python").iterdir(), stub):
        copy = folder / source.name
        if not source.is_file():
            continue
        if not copy.exists() or copy.stat().st_size != source.stat().st_size:
            shutil.copyfile(source, copy)
    (folder / stub.name).chmod(0o755)
    return target
