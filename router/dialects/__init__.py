"""Chat completions, Messages and Responses: from bytes to a request and from an answer to bytes."""
