"""Kubernetes: manifests from the settings, and rules that find what fails on a cluster."""
