"""MLflow and Prefect's artifacts: what people look at beside the tables."""
