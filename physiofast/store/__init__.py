"""Prepared recordings on disk: one safetensors file each, memory-mapped, and a manifest.

`manifest` is of the folder, `record_file` of one recording's file, `records` has both as objects, and `verification`
tells whether they are still what `prepare` wrote.
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
