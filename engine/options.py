"""The option helper, re-exported: its one home is `shards.options`, which engine and trainer share."""

from shards.options import option, options_tables

__all__ = ["option", "options_tables"]
