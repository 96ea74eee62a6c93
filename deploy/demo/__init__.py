"""The demo: everything started, known anomalies streamed, and what was found of them reported."""
