"""The site: static pages that are a pure function of records, readable from disk and offline."""

from gonio.site.build import build_site

__all__ = ["build_site"]
