"""The published study of small and large models in a cascade."""
