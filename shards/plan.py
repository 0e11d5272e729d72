"""The plan: an append-only list of units in immutable generations (`_plan/g0000.parquet`, `_plan/g0001.parquet`, ...)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Unit:
    """One window of one video: the smallest thing that is done, retried or given up. It yields exactly one sample.

    unit     sha256 hex of whatever identifies the work (uri, etag, size, span)
    key      the sample's key (`shards.schema.KEY`)
    uri      where the video is
    start_s, end_s  its span in the source, seconds
    payload  opaque to shards (JSON of the maker: etag, crop, pair, ...)
    attempt  0, or the number of the retry that `Run.retry_failed` planned
    """

    unit: str
    key: str
    uri: str
    start_s: float
    end_s: float
    payload: str = "{}"
    attempt: int = 0

    @property
    def ident(self) -> str:
        """Name of this attempt in `_work/` and `_fail/`."""
        return self.unit if self.attempt == 0 else f"{self.unit}-r{self.attempt}"
