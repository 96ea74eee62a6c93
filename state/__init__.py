"""What is remembered about entities: table, event log, codec and migrations."""
