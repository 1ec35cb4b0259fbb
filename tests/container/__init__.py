"""Tests of the image and of the Kubernetes manifests, with podman."""
