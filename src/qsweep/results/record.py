"""The record of a trial, as every output reads it."""

from typing import Any

Record = dict[str, Any]
