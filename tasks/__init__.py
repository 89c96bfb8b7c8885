"""One thin Prefect task a stage: read rows, call sdcore, append what is missing, refer to it."""
