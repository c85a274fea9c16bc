"""Rules that find in Kubernetes manifests what fails, or serves wrongly, on a cluster with Ray."""
