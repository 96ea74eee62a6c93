"""The life of a model's versions: published, tried in shadow, compared, promoted, retired."""
