"""The local stack: Kafka, Triton and a Flink cluster as child processes under one folder."""
