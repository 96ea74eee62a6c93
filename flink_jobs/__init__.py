"""The jobs: parse, score and decide on columns, with a thin Flink edge."""
