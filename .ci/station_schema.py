"""Writes the JSON Schema of a station file from its types: `make docs`."""

from __future__ import annotations

from flawline.runtime.station.settings.schema import SCHEMA_FILE, json_schema

if __name__ == "__main__":
    SCHEMA_FILE.write_bytes(json_schema())
    print(f"wrote {SCHEMA_FILE}")
