"""Prepared recordings on disk: one safetensors file each, memory-mapped, and a manifest.

`manifest` reads and writes the folder's manifest.json, `record_file` the file of one recording. `records` defines
`Store` and `StoreRecord`, and `verification` checks that a store is still what `prepare` wrote.
"""

from physiofast.store.record_file import (
    PLANE_ALIGN,
    PreparedRecord,
    content_sha256,
    lay_out_planes,
    padded,
    read_header,
    write_record,
)
from physiofast.store.records import SOURCE_KEYS, Store, StoreRecord, manifest_entry, most_maps, prepared_sha256

__all__ = [
    "PLANE_ALIGN",
    "SOURCE_KEYS",
    "PreparedRecord",
    "Store",
    "StoreRecord",
    "content_sha256",
    "lay_out_planes",
    "manifest_entry",
    "most_maps",
    "padded",
    "prepared_sha256",
    "read_header",
    "write_record",
]
