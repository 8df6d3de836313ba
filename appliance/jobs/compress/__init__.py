"""Compress jobs: a smaller version of a model that answers nearly as well."""
