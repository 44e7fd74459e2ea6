"""Drafting by the gateway's own path without a gateway, for studies and the demo."""
