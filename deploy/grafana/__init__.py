"""The dashboard of a service for Grafana, and the files with which Prometheus and Grafana find Ray's metrics."""
