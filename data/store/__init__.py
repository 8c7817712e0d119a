"""Files on disk or at a URL: whole or absent, read and written in one piece, known by their digest.

Knows paths, bytes, JSON, arrays and tables. What is in them (images, plans, records) is known by who writes them.
"""

from latebloom.data.store.files import (
    as_path,
    atomic_folder,
    atomic_path,
    check_space,
    digest_bytes,
    digest_file,
    digest_json,
    in_memory,
    is_remote,
    json_text,
    kept_file,
    list_folder,
    local_file,
    local_folder,
    not_installed,
    read_json,
    read_table,
    write_arrays,
    write_bytes,
    write_json,
)

__all__ = [
    "as_path",
    "atomic_folder",
    "atomic_path",
    "check_space",
    "digest_bytes",
    "digest_file",
    "digest_json",
    "in_memory",
    "is_remote",
    "json_text",
    "kept_file",
    "list_folder",
    "local_file",
    "local_folder",
    "not_installed",
    "read_json",
    "read_table",
    "write_arrays",
    "write_bytes",
    "write_json",
]
