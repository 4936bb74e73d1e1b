"""Pipelines: packages joined into measurements that commands print and sites show."""

__all__: list[str] = []
