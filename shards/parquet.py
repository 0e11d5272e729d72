"""Parquet from and to bytes.

On one thread, and never through a Python file object: the scanner behind `pyarrow.parquet.read_table` leaves threads
that still hold the file when the interpreter ends, and now and then end it with an abort or a hang
(https://github.com/apache/arrow/issues/34314, 33975 and 50482; six of 84 runs of `python -m shards verify`).
"""

import io
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq


def read(data: bytes) -> pa.Table:
    """The table of a parquet file; pa.ArrowException when it is damaged."""
    with pq.ParquetFile(pa.BufferReader(data)) as file:
        return file.read(use_threads=False)


def write(tables: Iterable[pa.Table], schema: pa.Schema) -> bytes:
    """A parquet file of the tables, one row group or more each. Equal tables give equal bytes."""
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)
    return sink.getvalue()
