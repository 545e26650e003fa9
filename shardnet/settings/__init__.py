"""Settings: sections that each subpackage defines and the daemons compose, read as defaults < TOML file < environment < command line.

Knows files, variables, where each value was said, and what is wrong with it. Refuses to know any section by name. Nothing is read at import.
Begin with `reading.py`; `section.py` is what a section inherits, docs/configuration.md is what people are told.
"""

from shardnet.settings.home import default_home, expand_user
from shardnet.settings.reading import Fault, Origin, Reading, load_settings, read_settings, whole
from shardnet.settings.section import MOST_BYTES, Key, Section, as_fault, keys_of, value_at

__all__ = [
    "MOST_BYTES",
    "Fault",
    "Key",
    "Origin",
    "Reading",
    "Section",
    "as_fault",
    "default_home",
    "expand_user",
    "keys_of",
    "load_settings",
    "read_settings",
    "value_at",
    "whole",
]
