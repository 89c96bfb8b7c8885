"""The DAG in Prefect, and the command `sdcore`."""
