"""Prefect's and MLflow's servers, the deployments, and the doctor that checks them."""
