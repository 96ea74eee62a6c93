"""The intensity model without a server, for tests and for calibration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flink_jobs.breaker import BreakerState
from flink_jobs.intensity_protocol import IncompatibleModelError, ReadyTicket, Ticket
from models.tpp import spec


class InProcessClient:
    """The same decoder without a server, on onnxruntime: for tests and for calibration."""

    state: BreakerState = "closed"

    def __init__(self, decoder: Path) -> None:
        """Load `decoder` (an ONNX file); onnxruntime is imported here, the stream has none."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            str(decoder), options, providers=["CPUExecutionProvider"]
        )
        meta = self._session.get_modelmeta().custom_metadata_map
        if meta.get("feature_version") != spec.FEATURE_VERSION:
            raise IncompatibleModelError(
                f"{decoder.name}: expected feature version {spec.FEATURE_VERSION}, found "
                f"{meta.get('feature_version')}; export it again with `eddy train`"
            )
        self.model_version: str = meta.get("model_version", "")

    def submit(self, x: NDArray[np.float32]) -> Ticket:
        """Answer x float32 [rows, 69] at once."""
        (y,) = self._session.run(["y"], {"x": x})
        return ReadyTicket(y if np.isfinite(y).all() else None)

    def has_room(self, rows: int) -> bool:  # noqa: ARG002 (protocol)
        """Return True."""
        return True

    def close(self) -> None:
        """Do nothing."""
