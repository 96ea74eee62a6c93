"""The commands of `eddy`, one module for each group; `deploy.cli` puts them together."""
