"""Machines that share no file system, on which conditions and seeds are trained."""

from pydantic import Field

from sdcore.config.base import FILE_ONLY, Count, Settings


class ClusterConfig(Settings):
    """A running Ray cluster that trains the conditions and seeds, each on one node.

    The machines need not share a file system: rows and checkpoints travel through `root`. Nothing
    here changes a result, so that a run may go on elsewhere.
    """

    address: str = Field(
        "auto",
        min_length=1,
        description="of the cluster, HOST:PORT; auto: $RAY_ADDRESS, or the one that this machine "
        "is a node of",
        json_schema_extra=FILE_ONLY,
    )
    root: str = Field(
        pattern=r"^([a-z][a-z0-9+.-]*://|/)",
        description="s3://BUCKET/PREFIX, or a folder that all nodes see, from /: what is on its "
        "way between the machines",
        json_schema_extra=FILE_ONLY,
    )
    gpus: float | None = Field(
        None,
        ge=0,
        description="GPUs per condition and seed; absent: one where the cluster has any",
    )
    cpus: Count = Field(
        1, description="processor cores, and torch's threads, per condition and seed"
    )
