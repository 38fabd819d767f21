"""A JobSet of Kubernetes for TPU slices and GPU nodes of GKE, from a small file of values."""
